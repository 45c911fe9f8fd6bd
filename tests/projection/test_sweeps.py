"""Reading, merging and choosing sweeps."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import File, Sweep, SweepLayout
from clipsweep.projection.pose import Pose
from clipsweep.projection.sweeps import choose_sweeps, deskew, merge, read_sweep
from tests.projection.scenes import frame, pose, shift, write


@pytest.fixture
def three(tmp_path):
    """A key sweep and two older ones that see the same ten places from elsewhere."""
    random = np.random.default_rng(0)
    places = random.uniform(-20, 20, (10, 3))
    sweeps = []
    for index in range(3):
        global_from_lidar = pose(random, 5.0)
        xyz = global_from_lidar.inverse().apply(places)
        file = write(tmp_path / f"{index}.bin", xyz.astype(np.float32))
        sweeps.append(Sweep(1_000_000 - index * 100_000, global_from_lidar, file))
    return frame("key", 1_000_000, sweeps)


def test_the_same_places_fall_together(three):
    cloud = merge(three, 3, SweepLayout())
    np.testing.assert_allclose(cloud.xyz[10:20], cloud.xyz[:10], atol=1e-4)
    np.testing.assert_allclose(cloud.xyz[20:], cloud.xyz[:10], atol=1e-4)
    np.testing.assert_allclose(cloud.age_s, np.repeat([0, 0.1, 0.2], 10), atol=1e-6)
    np.testing.assert_array_equal(cloud.sweep, np.repeat([0, 1, 2], 10))
    np.testing.assert_array_equal(cloud.source, np.tile(np.arange(10), 3))
    np.testing.assert_allclose(cloud.intensity, 0.2)


def test_ranges_are_those_that_each_sweep_measured(three):
    cloud = merge(three, 3, SweepLayout())
    raw = np.concatenate([read_sweep(sweep, SweepLayout())[:, :3] for sweep in three.sweeps])
    ray = cloud.xyz - cloud.origin[cloud.sweep]
    np.testing.assert_allclose(np.linalg.norm(ray, axis=1), np.linalg.norm(raw, axis=1), atol=1e-4)
    assert np.abs(cloud.origin[1:]).max() > 1
    np.testing.assert_array_equal(cloud.origin[0], 0)


def test_the_key_sweep_is_not_touched(three):
    raw = read_sweep(three.sweeps[0], SweepLayout())
    np.testing.assert_array_equal(merge(three, 1, SweepLayout()).xyz, raw[:, :3])
    assert len(merge(three, 9, SweepLayout()).xyz) == 30  # fewer sweeps than asked for


def test_no_sweep_at_all_is_refused(three):
    none = replace(three, sweeps=())
    for key, count in ((three, 0), (three, -1), (none, 1)):
        with pytest.raises(ValueError, match=f"sweeps={count} of frame key, which has"):
            merge(key, count, SweepLayout())
        with pytest.raises(ValueError, match=f"count={count} of frame key, which has"):
            choose_sweeps(key, count)


def test_the_cars_own_box_is_left_out(tmp_path):
    xyz = np.array([[0.5, -0.5, 9], [1.5, 0.5, 0], [0.5, 1.5, 0], [-0.9, 0.9, -1]])
    key = frame("key", 0, [Sweep(0, shift(0), write(tmp_path / "a.bin", xyz))])
    np.testing.assert_array_equal(merge(key, 1, SweepLayout(ego_box_m=1.0)).source, [1, 2])


def test_bad_points_up_to_a_share(tmp_path):
    xyz = np.ones((10, 3))
    xyz[2, 0] = np.nan
    xyz[5, 2] = 301
    sweep = Sweep(0, shift(0), write(tmp_path / "a.bin", xyz))
    with pytest.raises(BadInput, match=r"a\.bin: 2 of 10 points are not finite or beyond 300 m"):
        merge(frame("key", 0, [sweep]), 1, SweepLayout())
    with pytest.raises(BadInput, match="2 of 10"):
        read_sweep(sweep, SweepLayout(bad_share=0.1))
    cloud = merge(frame("key", 0, [sweep]), 1, SweepLayout(bad_share=0.2))
    np.testing.assert_array_equal(cloud.source, [0, 1, 3, 4, 6, 7, 8, 9])
    assert np.isnan(read_sweep(sweep, SweepLayout(bad_share=0.2))[[2, 5]]).all()


def test_files_that_are_not_those_indexed(tmp_path):
    file = write(tmp_path / "a.bin", np.ones((4, 3)))
    for wrong, text in [
        (replace(file, bytes=81), "has 80 bytes, 81 when indexed"),
        (replace(file, sha256="0" * 64), "sha256 is not the indexed one"),
        (File(tmp_path / "gone.bin", 80), "cannot be read"),
    ]:
        with pytest.raises(BadInput, match=text):
            merge(frame("key", 0, [Sweep(0, shift(0), wrong)]), 1, SweepLayout())
    with pytest.raises(BadInput, match="no whole number of 7-float points"):
        merge(frame("key", 0, [Sweep(0, shift(0), file)]), 1, SweepLayout(columns=7))
    right = replace(file, sha256=hashlib.sha256(file.path.read_bytes()).hexdigest())
    assert len(right.read()) == 80


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(BadInput, match="0 bytes"):
        merge(frame("key", 0, [Sweep(0, shift(0), File(tmp_path / "a.bin", 0))]), 1, SweepLayout())


def test_bad_input_survives_pickling():
    error = pickle.loads(pickle.dumps(BadInput("a.bin", "is bad", "copy it again")))
    assert str(error) == "a.bin: is bad; copy it again"


def test_choosing_sweeps(three):
    older = [replace(three.sweeps[1], time_us=1_000_000 - k * 100_000) for k in range(1, 10)]
    many = replace(three, sweeps=(three.sweeps[0], *older))

    def ages(chosen: Frame) -> list[float]:
        return [round((1_000_000 - s.time_us) * 1e-6, 1) for s in chosen.sweeps]

    assert ages(choose_sweeps(many, 3)) == [0.0, 0.1, 0.2]
    assert ages(choose_sweeps(many, 5, max_age_s=0.25)) == [0.0, 0.1, 0.2]
    drawn = [
        ages(choose_sweeps(many, 3, 10, random=np.random.default_rng(seed))) for seed in range(20)
    ]
    assert all(d[0] == 0 and d[1] < d[2] <= 0.9 and len(d) == 3 for d in drawn)
    assert len({tuple(d) for d in drawn}) > 5
    assert ages(choose_sweeps(three, 3, 10, random=np.random.default_rng(0))) == [0.0, 0.1, 0.2]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_spin_on_the_move_is_set_straight(order):
    """Walls seen by a car in a bend, point by point, fall onto the walls as they stand."""
    random = np.random.default_rng(0)
    turn = 0.6
    speed = np.array([12.0, 0.5, 0.1])
    span_s = 0.05

    def at(time_s: float) -> Pose:
        """The car at constant rates in its frame at time 0."""
        c = np.cos(turn * time_s)
        s = np.sin(turn * time_s)
        return Pose(np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]), speed * time_s)

    first = pose(random)
    walls = random.uniform(-50, 50, (200, 3))
    time_s = random.uniform(0, span_s, 200).astype(np.float32)
    seen = np.concatenate(
        [at(float(t)).inverse().apply(p[None]) for t, p in zip(time_s, walls, strict=True)]
    )
    both = [
        Sweep(0, first, File(Path("a"), 0)),
        Sweep(50_000, first @ at(span_s), File(Path("b"), 0)),
    ]
    sweep, other = (both[i] for i in order)
    after = time_s - np.float32(sweep.time_us * 1e-6)
    straight = deskew(seen.astype(np.float32), after, sweep, other)
    there = sweep.global_from_lidar.inverse().apply(first.apply(walls))
    # at the other end of a bend, the speed has another direction in the car
    limit = 1e-4 if order == (0, 1) else 0.02
    np.testing.assert_allclose(straight, there, atol=limit)
    assert np.abs(seen - walls).max() > 0.5
    with pytest.raises(ValueError, match="determines no motion"):
        deskew(seen.astype(np.float32), after, sweep, sweep)


@pytest.mark.parametrize(
    "wrong",
    [
        {"columns": 3},
        {"intensity_scale": 0.0},
        {"ego_box_m": float("nan")},
        {"bad_share": 2.0},
        {"bad_share": float("nan")},
    ],
)
def test_a_layout_that_no_file_can_have_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SweepLayout(**wrong)

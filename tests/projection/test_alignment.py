"""Key frames whose poses disagree on the height of the street."""

from __future__ import annotations

import numpy as np
import pytest

from clipsweep.projection import alignment_kernels as kernels
from clipsweep.projection.alignment import FlatCellFinder, align, unaligned
from clipsweep.projection.pose import Pose
from tests.projection.scenes import shift

SENSOR_M = 1.8


def tilted(degrees_x, degrees_y):
    return Pose.from_axis_angle(np.radians([degrees_x, degrees_y, 0.0]))


def street(random, x_m):
    """Road, two kerbs and a parked car's roof around x, in the global frame.

    Walls and loose returns too.
    """
    road = np.column_stack(
        [random.uniform(x_m - 30, x_m + 30, 9000), random.uniform(-15, 15, 9000), np.zeros(9000)]
    )
    road[np.abs(road[:, 1]) > 8, 2] = 0.12
    roof = np.column_stack(
        [random.uniform(8, 12, 300), random.uniform(3, 5, 300), np.full(300, 1.5)]
    )
    wall = np.column_stack(
        [random.uniform(x_m - 30, x_m + 30, 2000), np.full(2000, 15.0), random.uniform(0, 6, 2000)]
    )
    loose = random.uniform([x_m - 30, -15, -3], [x_m + 30, 15, 4], (300, 3))
    xyz = np.concatenate([road, roof, wall, loose])
    xyz[:, 2] += random.normal(size=len(xyz)) * 0.01
    return xyz


def drive(random, errors, frames=12, step_m=3.0):
    """Clouds, true poses, and poses wrong by ``errors (n, 3)``.

    Height [m], roll, pitch [degrees].
    """
    clouds = []
    true = []
    wrong = []
    for k in range(frames):
        pose = shift(step_m * k, 0, SENSOR_M)
        clouds.append(pose.inverse().apply(street(random, step_m * k)).astype(np.float32))
        height, roll, pitch = errors[k]
        true.append(pose)
        wrong.append(shift(step_m * k, 0, SENSOR_M + height) @ tilted(roll, pitch))
    return clouds, true, wrong


def aligned(clouds, poses, times_us=None, window_s=5.0):
    finder = FlatCellFinder()
    cells = [finder.find(xyz, pose) for xyz, pose in zip(clouds, poses, strict=True)]
    return align(cells, poses, times_us or [500_000 * k for k in range(len(poses))], window_s)


def road_differences(poses, true):
    """Largest difference in height that successive frames give the road within 15 m."""
    worst = 0.0
    for k in range(len(poses) - 1):
        x = true[k].translation[0]
        probe = np.array([[x + a, b, 0.0] for a in (-15, 0, 15) for b in (-10, 0, 10)])
        seen = [poses[i].apply(true[i].inverse().apply(probe))[:, 2] for i in (k, k + 1)]
        worst = max(worst, float(np.abs(seen[0] - seen[1]).max()))
    return worst


def test_heights_and_tilts_are_found():
    random = np.random.default_rng(0)
    errors = np.column_stack(
        [np.cumsum(random.normal(size=12) * 0.3), random.normal(size=(12, 2)) * 0.4]
    )
    clouds, true, wrong = drive(random, errors)
    found = aligned(clouds, wrong)
    assert road_differences(wrong, true) > 0.5
    corrected = [c @ pose for c, pose in zip(found.corrections, wrong, strict=True)]
    assert road_differences(corrected, true) < 0.03
    assert found.before_m > 0.1
    assert found.after_m < 0.02
    assert found.largest_m > 0.3
    assert found.corrected
    assert all(found.fits)
    for pose, old in zip(corrected, wrong, strict=True):  # the car stays where it was on the map
        np.testing.assert_allclose(pose.translation[:2], old.translation[:2], atol=1e-9)


def test_poses_that_agree_are_left_alone():
    clouds, true, _ = drive(np.random.default_rng(1), np.zeros((12, 3)))
    found = aligned(clouds, true)
    assert found.before_m < 0.01
    assert not found.corrected
    assert all(found.fits)
    for correction in found.corrections:
        np.testing.assert_array_equal(correction.matrix(), Pose.identity().matrix())


@pytest.mark.parametrize("wrong_frames", [[7], [9, 10, 11]])
def test_few_wrong_frames_among_many_are_found(wrong_frames):
    """One frame, or the last quarter, half a metre too high: most pairs of frames agree."""
    errors = np.zeros((12, 3))
    errors[wrong_frames, 0] = 0.5
    clouds, true, wrong = drive(np.random.default_rng(6), errors)
    found = aligned(clouds, wrong)
    corrected = [c @ pose for c, pose in zip(found.corrections, wrong, strict=True)]
    assert road_differences(wrong, true) > 0.4
    assert road_differences(corrected, true) < 0.03
    assert all(found.fits)
    assert found.after_m < found.before_m


def hilly(clouds, numbers, random):
    """Each of some clouds with hills of its own, which no rigid correction takes away."""
    for k in numbers:
        hills = random.uniform(-2, 2, (40, 40))
        cell = np.floor(clouds[k][:, :2] / 4).astype(int) + 20
        clouds[k][:, 2] += hills[cell[:, 0], cell[:, 1]].astype(np.float32)


def test_frames_that_do_not_fit_are_reported():
    random = np.random.default_rng(2)
    clouds, true, _ = drive(random, np.zeros((6, 3)), 6)
    hilly(clouds, range(6), random)
    found = aligned(clouds, true)
    assert not any(found.fits)
    assert not found.corrected


def test_a_frame_that_does_not_fit_spoils_no_other():
    random = np.random.default_rng(3)
    errors = np.zeros((12, 3))
    errors[8:, 0] = 0.3
    clouds, true, wrong = drive(random, errors)
    hilly(clouds, [4], random)
    found = aligned(clouds, wrong)
    assert [k for k, fits in enumerate(found.fits) if not fits] == [4]
    np.testing.assert_array_equal(found.corrections[4].matrix(), Pose.identity().matrix())
    good = [k for k in range(12) if k != 4]
    corrected = [found.corrections[k] @ wrong[k] for k in good]
    assert road_differences(corrected, [true[k] for k in good]) < 0.05


@pytest.mark.parametrize("times_us", [None, [0, 10_000_000, 20_000_000]])
def test_frames_that_share_nothing_are_left_alone(times_us):
    """Too far apart to see the same road, or too long: nothing is compared."""
    step_m = 3.0 if times_us else 200.0
    clouds, _, wrong = drive(
        np.random.default_rng(3), np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]]), 3, step_m
    )
    found = aligned(clouds, wrong, times_us)
    assert not found.corrected
    assert all(found.fits)


def test_one_frame_and_none():
    clouds, true, _ = drive(np.random.default_rng(4), np.zeros((1, 3)), 1)
    assert len(aligned(clouds, true).corrections) == 1
    assert aligned([], []).corrections == unaligned(0).corrections == ()
    assert not aligned([np.empty((0, 3), np.float32)] * 2, [shift(0), shift(1)]).corrected


@pytest.mark.parametrize("compiled", [True, False])
def test_flat_cells_and_common_rows(compiled):
    """Against plain loops over the cells."""
    run = lambda kernel, *given: (kernel if compiled else kernel.py_func)(*given)  # noqa: E731
    random = np.random.default_rng(5)
    xyz = random.uniform([-6, -6, 0], [6, 6, 0.35], (400, 3)).astype(np.float32)
    width = 8
    origin = np.array([-4, -4])
    low = np.full(64, np.inf, np.float32)
    high = np.full(64, -np.inf, np.float32)
    total = np.zeros((64, 3))
    count = np.zeros(64, np.int32)
    cell = np.zeros(64, np.int64)
    centre = np.zeros((64, 3))
    for _ in range(2):  # the scratch comes back empty
        found = run(
            kernels.flat_cells, xyz, np.eye(3), np.zeros(3), origin, 1.0, width, 0.3, 3,
            low, high, total, count, cell, centre,
        )  # fmt: skip
    expected = {}
    for column in range(-4, 4):
        for row in range(-4, 4):
            inside = xyz[(np.floor(xyz[:, 0]) == column) & (np.floor(xyz[:, 1]) == row)]
            if len(inside) >= 3 and np.ptp(inside[:, 2]) < 0.3:
                expected[(column << 32) + row] = inside.mean(axis=0)
    assert 10 < found < 60
    assert cell[:found].tolist() == sorted(expected) == list(expected)
    np.testing.assert_allclose(centre[:found], list(expected.values()), atol=1e-5)
    other = np.array([-(4 << 32) - 4, 5, *cell[3:found:2].tolist()], np.int64)
    rows = np.zeros((found, 2), np.int64)
    shared = run(kernels.common, cell[:found], np.sort(other), rows)
    assert set(cell[rows[:shared, 0]].tolist()) == set(cell[:found].tolist()) & set(other.tolist())
    np.testing.assert_array_equal(cell[rows[:shared, 0]], np.sort(other)[rows[:shared, 1]])

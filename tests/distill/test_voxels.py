"""Voxels and batches against plain NumPy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsweep.distill.student.batch import Batch, collate
from clipsweep.distill.student.voxels import FEATURES, Sample, Voxels, channels, voxelize
from clipsweep.projection import kernels

ALL = tuple(FEATURES)
VOXEL_M = 0.5
HEIGHT_M = 1.8
REDUCED = {
    "first": lambda rows: rows[0],
    "mean": lambda rows: rows.mean(0),
    "max": lambda rows: rows.max(0),
}


def sample(count: int, seed: int = 0, pairs: int = 20, spread: float = 3.0) -> Sample:
    random = np.random.default_rng(seed)
    points = random.integers(0, max(count, 1), pairs if count else 0)
    return Sample(
        f"frame {seed}",
        (random.normal(size=(count, 3)) * spread).astype(np.float32),
        random.uniform(size=count).astype(np.float32),
        random.uniform(0, 0.5, count).astype(np.float32),
        points,
        random.integers(0, 4, len(points)),
    )


def voxels_of(one: Sample, **changes: Any) -> Voxels:
    plain: dict[str, Any] = {
        "voxel_m": VOXEL_M, "features": ALL, "reduce": "mean", "sensor_height_m": HEIGHT_M,
        **changes,
    }  # fmt: skip
    return voxelize(one, **plain)


def point_features(one: Sample) -> np.ndarray:
    xyz = one.xyz.astype(np.float64)
    cells = xyz / VOXEL_M
    columns = [
        one.intensity,
        xyz[:, 2] + HEIGHT_M,
        np.sqrt((xyz**2).sum(1)),
        one.age_s,
        *(cells % 1 - 0.5).T,
    ]
    return np.stack(columns, 1)


@given(st.integers(0, 300), st.sampled_from(list(REDUCED)), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_voxels_are_those_of_numpy(count: int, reduce: str, seed: int) -> None:
    one = sample(count, seed)
    voxels = voxels_of(one, reduce=reduce)
    cells = np.floor(one.xyz.astype(np.float64) / VOXEL_M).astype(np.int64)
    expected, inverse = np.unique(cells, axis=0, return_inverse=True)
    np.testing.assert_array_equal(voxels.coords, expected)
    np.testing.assert_array_equal(voxels.inverse, inverse.reshape(-1))
    rows = point_features(one)
    for v in range(len(expected)):
        np.testing.assert_allclose(
            voxels.feats[v], REDUCED[reduce](rows[voxels.inverse == v]), atol=1e-5, rtol=1e-5
        )
    assert voxels.truncated == 0


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_kernel_and_its_python_agree(mode: int) -> None:
    random = np.random.default_rng(mode)
    values = random.normal(size=(50, 3)).astype(np.float32)
    inverse = random.integers(0, 9, 50)
    outs = []
    for function in (kernels.reduce_rows, kernels.reduce_rows.py_func):
        out = np.zeros((9, 3), np.float32)
        count = np.zeros(9, np.int32)
        function(values, inverse, mode, out, count)
        np.testing.assert_array_equal(count, np.bincount(inverse, minlength=9))
        outs.append(out)
    np.testing.assert_allclose(*outs, atol=1e-6)


@pytest.mark.parametrize("limit", [0, 10])
def test_range_is_from_where_the_lidar_stood(limit: int) -> None:
    one = sample(30)
    origin = np.random.default_rng(1).normal(size=(30, 3)).astype(np.float32)
    moved = replace(one, origin=origin)
    both = replace(one, xyz=one.xyz, intensity=np.linalg.norm(one.xyz - origin, axis=1))
    seen = voxels_of(moved, features=("range",), reduce="max", max_voxels=limit)
    expected = voxels_of(both, features=("intensity",), reduce="max", max_voxels=limit)
    np.testing.assert_allclose(seen.feats, expected.feats, rtol=1e-5)


def test_features_are_chosen_in_order() -> None:
    one = sample(30)
    assert channels(ALL) == 7
    both = voxels_of(one, features=("range", "intensity"))
    np.testing.assert_array_equal(both.feats[:, 0], voxels_of(one, features=("range",)).feats[:, 0])
    np.testing.assert_array_equal(
        both.feats[:, 1], voxels_of(one, features=("intensity",)).feats[:, 0]
    )


@pytest.mark.parametrize("features", [(), ("colour",)])
def test_unknown_features_are_refused(features: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="choose from intensity, height"):
        voxels_of(sample(5), features=features)


# --- trilinear ------------------------------------------------------------------------------------


def corners_twin(one: Sample, voxels: Voxels) -> np.ndarray:
    """Weights of all voxels for each point (n, v)."""
    row_of = {tuple(cell): v for v, cell in enumerate(voxels.coords.tolist())}
    weights = np.zeros((len(one.xyz), len(voxels.coords)))
    for i, place in enumerate(one.xyz.astype(np.float64) / VOXEL_M - 0.5):
        base = np.floor(place)
        for corner in itertools.product((0, 1), repeat=3):
            v = row_of.get(tuple((base + corner).astype(int).tolist()))
            if v is not None:
                weights[i, v] += np.prod(1 - np.abs(place - base - corner))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("count", [0, 1, 80])
def test_trilinear_weights(count: int, python: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if python:
        monkeypatch.setattr(kernels, "corners", kernels.corners.py_func)
    one = sample(count, spread=1.0)
    voxels = voxels_of(one, trilinear=True)
    assert voxels.corners is not None
    found = np.zeros((count, len(voxels.coords)))
    for k in range(8):
        found[np.arange(count), voxels.corners[0][:, k]] += voxels.corners[1][:, k]
    np.testing.assert_allclose(found, corners_twin(one, voxels) if count else found, atol=1e-5)


# --- limits ---------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 60), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_limit_of_voxels(count: int, limit: int, drawn: bool, seed: int) -> None:
    one = sample(count, seed)
    whole = voxels_of(one)
    part = voxels_of(one, max_voxels=limit, generator=np.random.default_rng(0) if drawn else None)
    assert len(part.coords) == min(limit, len(whole.coords))
    assert part.truncated == len(whole.coords) - len(part.coords)
    left = {tuple(cell) for cell in part.coords.tolist()}
    stays = np.array([tuple(whole.coords[v].tolist()) in left for v in whole.inverse])
    assert len(part.inverse) == stays.sum()
    np.testing.assert_array_equal(part.coords[part.inverse], whole.coords[whole.inverse[stays]])
    targets = stays[one.pair_point]
    np.testing.assert_array_equal(np.flatnonzero(stays)[part.pair_point], one.pair_point[targets])
    np.testing.assert_array_equal(part.pair_label, one.pair_label[targets])


def test_without_generator_the_nearest_stay() -> None:
    one = sample(400)
    part = voxels_of(one, max_voxels=50)
    distance = (voxels_of(one).coords.astype(float) ** 2).sum(1)
    assert (part.coords.astype(float) ** 2).sum(1).max() <= np.sort(distance)[49]


# --- batches --------------------------------------------------------------------------------------


def batch_of(*counts: int, **changes: Any) -> tuple[Batch, list[Voxels]]:
    frames = [voxels_of(sample(count, seed), **changes) for seed, count in enumerate(counts)]
    return collate(frames), frames


@pytest.mark.parametrize("counts", [(50,), (50, 0, 70), (0,), (1, 1)])
def test_frames_are_numbered_through(counts: tuple[int, ...]) -> None:
    batch, frames = batch_of(*counts, trilinear=True, max_voxels=40)
    assert batch.frames == tuple(f"frame {i}" for i in range(len(counts)))
    assert batch.truncated == sum(frame.truncated for frame in frames)
    voxel = 0
    point = 0
    pair = 0
    for i, frame in enumerate(frames):
        v = len(frame.coords)
        n = len(frame.inverse)
        m = len(frame.pair_point)
        assert (batch.coords[voxel : voxel + v, 0] == i).all()
        np.testing.assert_array_equal(batch.coords[voxel : voxel + v, 1:], frame.coords)
        np.testing.assert_array_equal(batch.feats[voxel : voxel + v], frame.feats)
        np.testing.assert_array_equal(batch.inverse[point : point + n], frame.inverse + voxel)
        np.testing.assert_array_equal(batch.pair_point[pair : pair + m], frame.pair_point + point)
        np.testing.assert_array_equal(batch.pair_label[pair : pair + m], frame.pair_label)
        assert frame.corners is not None
        assert batch.corner is not None
        np.testing.assert_array_equal(batch.corner[point : point + n], frame.corners[0] + voxel)
        voxel = voxel + v
        point = point + n
        pair = pair + m
    assert (voxel, point, pair) == (len(batch.coords), len(batch.inverse), len(batch.pair_point))


@pytest.mark.parametrize("count", [0, 129])
def test_number_of_frames(count: int) -> None:
    with pytest.raises(ValueError, match="1 to 128"):
        collate([voxels_of(sample(1))] * count)


def test_to_keeps_all_but_the_place() -> None:
    batch, _ = batch_of(20, 30)
    there = batch.to("meta")
    assert there.frames == batch.frames
    assert there.feats.is_meta
    assert there.corner is None
    assert there.feats.shape == batch.feats.shape


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pinned_batch_goes_to_cuda() -> None:
    batch, _ = batch_of(20, 30)
    pinned = batch.pin_memory()
    assert pinned.feats.is_pinned()
    assert torch.equal(pinned.to("cuda").to("cpu").coords, batch.coords)

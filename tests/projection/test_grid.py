"""Cells partition a cloud."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsweep.projection.grid import cell_keys, index_cells
from tests.projection.scenes import pose

SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(seed=SEEDS, n=st.integers(0, 200), size=st.sampled_from([0.1, 0.25, 3.0]))
def test_cells_partition_the_cloud(seed, n, size):
    xyz = (np.random.default_rng(seed).normal(size=(n, 3)) * 2).astype(np.float32)
    index, inverse = index_cells(cell_keys(xyz, size))
    coords = index.coords()[:, 1:]
    np.testing.assert_array_equal(coords[inverse], np.floor(xyz.astype(np.float64) / size))
    assert len(np.unique(coords, axis=0)) == len(coords)
    if n:
        first = np.unique(inverse, return_index=True)[1]
        assert (np.diff(first) > 0).all()  # numbered in order of first sight
        np.testing.assert_array_equal(np.unique(inverse), np.arange(len(coords)))


def test_the_grid_may_stand_anywhere():
    random = np.random.default_rng(0)
    xyz = (random.normal(size=(50, 3)) * 9).astype(np.float32)
    global_from_xyz = pose(random, 300.0)
    index, inverse = index_cells(cell_keys(xyz, 0.4, global_from_xyz))
    expected = np.floor(global_from_xyz.apply(xyz) / 0.4)
    np.testing.assert_array_equal(index.coords()[inverse, 1:], expected)
    np.testing.assert_array_equal(index.find(index.keys), np.arange(len(index)))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e9])
def test_points_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="lies beyond 26214 m"):
        cell_keys(np.array([[0, 0, 0], [wrong, 0, 0]], np.float32), 0.1)

"""Voxel grid with a hash table: packed keys, distinct voxels, sparse convolution kernel maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64, Integer, UInt64

from clipsweep.projection import kernels
from clipsweep.projection.pose import Pose


@dataclass(frozen=True, eq=False, slots=True)
class CellIndex:
    """Voxel hash table: distinct cell keys, numbered in order of first sight.

    Attributes:
        keys: packed coordinates of each distinct cell.
        table: open-addressing table of their numbers, -1 where free.
    """

    keys: UInt64[np.ndarray, " v"]
    table: Int32[np.ndarray, " slots"]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: UInt64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Looks up the number of each key's cell, -1 where it is not in the hash table."""
        index = np.empty(len(keys), np.int32)
        kernels.find(keys, self.keys, self.table, index)
        return index

    def coords(self) -> Int32[np.ndarray, "v 4"]:
        """Batch index and integer coordinates of each cell."""
        return key_coords(self.keys)


def key_coords(keys: UInt64[np.ndarray, " v"]) -> Int32[np.ndarray, "v 4"]:
    """Unpacks cell keys to batch index and integer coordinates."""
    coords = np.empty((len(keys), 4), np.int32)
    kernels.unpack(keys, coords)
    return coords


def index_cells(keys: UInt64[np.ndarray, " n"]) -> tuple[CellIndex, Int32[np.ndarray, " n"]]:
    """Hashes voxels: the distinct cells among ``keys``, and each key's cell number."""
    table = np.full(1 << max(4, (2 * len(keys) - 1).bit_length()), -1, np.int32)
    unique = np.empty(len(keys), np.uint64)
    inverse = np.empty(len(keys), np.int32)
    count = kernels.distinct(keys, table, unique, inverse)
    return CellIndex(unique[:count].copy(), table), inverse


def cell_keys(
    xyz: Float32[np.ndarray, "n 3"], size_m: float, grid_from_xyz: Pose | None = None
) -> UInt64[np.ndarray, " n"]:
    """Voxel of each point as a packed 64-bit key: ``floor(x / size)``.

    After an optional rigid transform in float64.

    Raises:
        ValueError: a point is not finite or farther from the grid's origin than 2^18 cells.
    """
    pose = grid_from_xyz or Pose.identity()
    keys = np.empty(len(xyz), np.uint64)
    if not kernels.cell_keys(xyz, pose.rotation, pose.translation, size_m, keys):
        raise ValueError(
            f"a point is not finite or lies beyond {2**18 * size_m:.0f} m from the grid's origin"
        )
    return keys


@dataclass(frozen=True, eq=False, slots=True)
class PairLists:
    """Kernel map of a sparse convolution: pairs of input and output rows by kernel offset.

    Within a list each row is there once, on either side.

    Attributes:
        source: rows of the input.
        target: rows of the output.
        starts: where each list begins, and the end of the last.
    """

    source: Int32[np.ndarray, " p"]
    target: Int32[np.ndarray, " p"]
    starts: Int64[np.ndarray, " k1"]

    def reverse(self) -> PairLists:
        """Transposed kernel map: the same pairs with input and output exchanged."""
        return PairLists(self.target, self.source, self.starts)

    def tile(self, outputs: int, tile_rows: int) -> PairLists:
        """Kernel map sorted by tile of output rows, then by offset.

        List ``tile * k + offset``.
        """
        offsets = len(self.starts) - 1
        offset = np.repeat(np.arange(offsets, dtype=np.int32), np.diff(self.starts))
        starts, order = _group(
            self.target // tile_rows * offsets + offset, -(-outputs // tile_rows) * offsets
        )
        return PairLists(self.source[order], self.target[order], starts)


def _group(
    group: Integer[np.ndarray, " n"], groups: int
) -> tuple[Int64[np.ndarray, " g1"], Int32[np.ndarray, " n"]]:
    starts = np.empty(groups + 1, np.int64)
    order = np.empty(len(group), np.int32)
    kernels.group_rows(group, starts, order)
    return starts, order


def _pack(coords: Int32[np.ndarray, "v 4"]) -> UInt64[np.ndarray, " v"]:
    keys = np.empty(len(coords), np.uint64)
    if not kernels.pack_rows(coords, keys):
        raise ValueError(
            f"a cell lies beyond {2**18} cells from the origin, or there are more than 128 frames"
        )
    return keys


def index_coords(coords: Int32[np.ndarray, "v 4"]) -> CellIndex:
    """Hash table of distinct voxels (batch, c0, c1, c2), numbered in the order given.

    Raises:
        ValueError: a row is there twice, or is beyond 2^18 cells or batch 127.
    """
    index, _ = index_cells(_pack(coords))
    if len(index) != len(coords):
        raise ValueError(f"{len(coords) - len(index)} of {len(coords)} cells stand twice")
    return index


def neighbours(index: CellIndex) -> PairLists:
    """Kernel map of a 3^3 submanifold convolution: pairs of touching cells, each with itself too.

    List ``k`` holds the pairs with ``coords[source] = coords[target] + (k // 9 - 1, k // 3 % 3 - 1,
    k % 3 - 1)``. Half of them are looked up: list ``26 - k`` is list ``k`` with source and target
    exchanged.
    """
    count = len(index)
    source = np.empty((13, count), np.int32)
    target = np.empty((13, count), np.int32)
    counts = np.zeros(13, np.int64)
    kernels.half_neighbours(index.keys, index.table, source, target, counts)
    sources, targets = ([side[k, : counts[k]] for k in range(13)] for side in (source, target))
    same = np.arange(count, dtype=np.int32)
    starts = np.cumsum([0, *counts, count, *counts[::-1]])
    return PairLists(
        np.concatenate([*sources, same, *targets[::-1]]),
        np.concatenate([*targets, same, *sources[::-1]]),
        starts,
    )


def coarsen(coords: Int32[np.ndarray, "v 4"]) -> tuple[CellIndex, PairLists]:
    """Downsamples a voxel grid by two: coarse cells, and pairs (fine, coarse) by octant.

    Coarse cells come in order of first sight.

    List ``4 * o0 + 2 * o1 + o2`` holds the pairs with
    ``coords[fine] = 2 * coords[coarse] + (o0, o1, o2)``.

    Raises:
        ValueError: a row is beyond 2^18 cells or batch 127.
    """
    parents = np.empty_like(coords)
    octant = np.empty(len(coords), np.uint8)
    kernels.halve(coords, parents, octant)
    index, parent = index_cells(_pack(parents))
    starts, order = _group(octant, 8)
    return index, PairLists(order, parent[order], starts)

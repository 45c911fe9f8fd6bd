"""Cuts space into cubes: keys of cells by a hash, distinct cells, and the way back to the points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, UInt64

from projection import kernels
from projection.frames import Cells
from projection.pose import Pose


@dataclass(frozen=True, eq=False, slots=True)
class CellIndex:
    """A hash over distinct cell keys, numbered in order of first sight.

    Attributes:
        keys: packed coordinates of each distinct cell.
        table: open-addressing table of their numbers, -1 where free.
    """

    keys: UInt64[np.ndarray, " v"]
    table: Int32[np.ndarray, " slots"]

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: UInt64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
        """Number of each key's cell, -1 where it is not in the index."""
        index = np.empty(len(keys), np.int32)
        kernels.find(keys, self.keys, self.table, index)
        return index

    def coords(self) -> Int32[np.ndarray, "v 4"]:
        """Batch index and integer coordinates of each cell."""
        coords = np.empty((len(self.keys), 4), np.int32)
        kernels.unpack(self.keys, coords)
        return coords


def index_cells(keys: UInt64[np.ndarray, " n"]) -> tuple[CellIndex, Int32[np.ndarray, " n"]]:
    """The distinct cells among ``keys`` and each key's cell number."""
    table = np.full(1 << max(4, (2 * len(keys) - 1).bit_length()), -1, np.int32)
    unique, inverse = np.empty(len(keys), np.uint64), np.empty(len(keys), np.int32)
    count = kernels.distinct(keys, table, unique, inverse)
    return CellIndex(unique[:count].copy(), table), inverse


def cell_keys(
    xyz: Float32[np.ndarray, "n 3"], size_m: float, grid_from_xyz: Pose | None = None
) -> UInt64[np.ndarray, " n"]:
    """Packed key of the cube ``floor(x / size)`` of each point, after an optional transform in float64.

    Raises:
        ValueError: a point is not finite or farther from the grid's origin than 2^18 cells.
    """
    pose = grid_from_xyz or Pose.identity()
    keys = np.empty(len(xyz), np.uint64)
    if not kernels.cell_keys(xyz, pose.rotation, pose.translation, size_m, keys):
        raise ValueError(f"a point is not finite or lies beyond {2**18 * size_m:.0f} m from the grid's origin")
    return keys


def cut(xyz: Float32[np.ndarray, "n 3"], size_m: float) -> Cells:
    """Cuts a cloud into cubes of ``size_m`` metres.

    Raises:
        ValueError: see ``cell_keys``.
    """
    index, inverse = index_cells(cell_keys(xyz, size_m))
    return Cells(np.ascontiguousarray(index.coords()[:, 1:]), inverse)


@dataclass(frozen=True, eq=False, slots=True)
class PairLists:
    """Which row of a fine set of cells meets which row of another, list after list, one list for each offset.

    Within a list no row stands twice, on either side.

    Attributes:
        source: rows of the cells at ``target + offset`` (submanifold), or of the fine cells (strided).
        target: rows of the cells that are looked from, or of the coarse cells; of the submanifold lists ascending.
        ends: where each list ends.
    """

    source: Int32[np.ndarray, " p"]
    target: Int32[np.ndarray, " p"]
    ends: tuple[int, ...]


def index_coords(coords: Int32[np.ndarray, "v 4"]) -> CellIndex:
    """A hash over distinct rows (batch, c0, c1, c2), numbered as they stand.

    Raises:
        ValueError: a row stands twice, or is beyond 2^18 cells or batch 127.
    """
    keys = np.empty(len(coords), np.uint64)
    if not kernels.pack_rows(coords, keys):
        raise ValueError(f"a cell lies beyond {2**18} cells from the origin, or there are more than 128 frames")
    index, _ = index_cells(keys)
    if len(index) != len(coords):
        raise ValueError(f"{len(coords) - len(index)} of {len(coords)} cells stand twice")
    return index


def neighbours(index: CellIndex) -> PairLists:
    """Pairs of touching cells at 13 of the 26 offsets; swapping source and target gives offset ``26 - k``.

    Offset ``k`` is ``(k // 9 - 1, k // 3 % 3 - 1, k % 3 - 1)``; the centre, 13, needs no list.
    """
    source, target = np.empty((13, len(index)), np.int32), np.empty((13, len(index)), np.int32)
    counts = np.zeros(13, np.int64)
    kernels.half_neighbours(index.keys, index.table, source, target, counts)
    sides = (np.concatenate([side[k, :count] for k, count in enumerate(counts)]) for side in (source, target))
    return PairLists(*sides, ends=tuple(np.cumsum(counts).tolist()))


def coarsen(coords: Int32[np.ndarray, "v 4"]) -> tuple[CellIndex, PairLists]:
    """The cells at twice the size, in order of first sight, and the pairs (fine row, coarse row) of each octant.

    Octant ``4 * o0 + 2 * o1 + o2`` holds the cells with ``coords = 2 * coarse + o``.

    Raises:
        ValueError: see ``index_coords``.
    """
    parents, octant = np.empty_like(coords), np.empty(len(coords), np.uint8)
    kernels.halve(coords, parents, octant)
    keys = np.empty(len(coords), np.uint64)
    if not kernels.pack_rows(parents, keys):
        raise ValueError(f"a cell lies beyond {2**18} cells from the origin, or there are more than 128 frames")
    index, parent = index_cells(keys)
    ends, order = np.empty(8, np.int64), np.empty(len(coords), np.int32)
    kernels.group_rows(octant, ends, order)
    return index, PairLists(order, parent[order], tuple(ends.tolist()))

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

"""Compiled code of ``projection.clusters`` (twin in ``tests/projection/twins.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipsweep.projection.jit import jit
from clipsweep.projection.kernels import COORD_BITS, find_one


@jit
def root(parent: Any, cell: Any) -> Any:
    """The cell that stands for the cluster of a cell; shortens the way there (union-find)."""
    while parent[cell] != cell:
        parent[cell] = parent[parent[cell]]
        cell = parent[cell]
    return cell


@jit
def connect(keys: Any, table: Any, parent: Any) -> None:
    """Writes for each cell the first cell of its cluster: cells that touch are of one cluster.

    ``keys (v,) u64`` and ``table`` are a ``CellIndex``; keys with other batch bits never touch.
    """
    for i in range(len(keys)):
        parent[i] = i
    for k in range(13):
        step = (
            (k // 9 - 1) * (1 << (2 * COORD_BITS))
            + (k // 3 % 3 - 1) * (1 << COORD_BITS)
            + k % 3
            - 1
        )
        for i in range(len(keys)):
            found = find_one(np.uint64(np.int64(keys[i]) + step), keys, table)
            if found >= 0:
                one = root(parent, i)
                other = root(parent, found)
                parent[max(one, other)] = min(one, other)
    for i in range(len(keys)):
        parent[i] = root(parent, i)

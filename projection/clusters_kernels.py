"""Compiled kernels of the point clustering (twin in ``tests/projection/twins.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipsweep.projection.jit import jit
from clipsweep.projection.kernels import COORD_BITS, find_one


@jit
def root(parent: Any, cell: Any) -> Any:
    """Union-find root: the cell that stands for a cell's cluster; shortens the path to it."""
    while parent[cell] != cell:
        parent[cell] = parent[parent[cell]]
        cell = parent[cell]
    return cell


@jit
def connect(keys: Any, table: Any, parent: Any) -> None:
    """Connected components (union-find): writes each cell's cluster; touching cells share one.

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

"""Point cloud clustering: Euclidean clusters as connected components of occupied voxels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int32, UInt64

from clipsweep.projection import clusters_kernels as kernels
from clipsweep.projection.grid import index_cells


def connect_cells(keys: UInt64[np.ndarray, " n"]) -> Int32[np.ndarray, " n"]:
    """Connected components of occupied voxels: cluster of each point.

    Takes the packed key of each point's cell (``projection.grid.cell_keys``).

    Cells that touch at a face, an edge or a corner belong to one cluster. Clusters are numbered by
    one of their cells, so numbers have gaps.
    """
    index, cell = index_cells(keys)
    parent = np.empty(len(index), np.int32)
    kernels.connect(index.keys, index.table, parent)
    return parent[cell]

"""Compiled kernels of the ground alignment of key frames (``projection.alignment``).

Flat arrays in, flat arrays out (twins in the tests).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clipsweep.projection.jit import jit


@jit
def flat_cells(
    xyz: Any, rotation: Any, translation: Any, origin: Any, size: float, width: int, flat: float,
    least: int, low: Any, high: Any, total: Any, count: Any, cell: Any, centre: Any,
) -> int:  # fmt: skip
    """Writes the flat ground cells of a sweep: all points within ``flat`` metres of height.

    Answers how many.

    ``low``, ``high (width * width,) f32``, ``total (width * width, 3) f64`` and ``count
    (width * width,) i32`` are scratch that comes and goes out empty (inf, -inf, 0, 0). The square
    of ``width`` cells around ``origin (2,) i64`` is looked at. ``cell (m,) i64`` gets the packed
    column and row of each flat cell with at least ``least`` points, ascending, and ``centre (m, 3)
    f64`` the mean of its points after the rigid transform.
    """
    for i in range(xyz.shape[0]):
        x = np.float64(xyz[i, 0])
        y = np.float64(xyz[i, 1])
        z = np.float64(xyz[i, 2])
        px = rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z + translation[0]
        py = rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z + translation[1]
        pz = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z + translation[2]
        column = np.int64(np.floor(px / size)) - origin[0]
        row = np.int64(np.floor(py / size)) - origin[1]
        if column < 0 or column >= width or row < 0 or row >= width:
            continue
        k = column * width + row
        low[k] = min(low[k], pz)
        high[k] = max(high[k], pz)
        total[k, 0] += px
        total[k, 1] += py
        total[k, 2] += pz
        count[k] += 1
    found = 0
    for k in range(len(count)):
        if count[k] >= least and high[k] - low[k] < flat:
            cell[found] = ((origin[0] + k // width) << 32) + (origin[1] + k % width)
            for j in range(3):
                centre[found, j] = total[k, j] / count[k]
            found += 1
        if count[k] > 0:
            low[k] = np.inf
            high[k] = -np.inf
            count[k] = 0
            for j in range(3):
                total[k, j] = 0.0
    return found


@jit
def common(first: Any, second: Any, rows: Any) -> int:
    """Intersection of two sorted arrays: writes rows ``(m, 2) i64`` of the values they share.

    Answers how many.
    """
    i = 0
    j = 0
    found = 0
    while i < len(first) and j < len(second):
        if first[i] < second[j]:
            i += 1
        elif first[i] > second[j]:
            j += 1
        else:
            rows[found, 0] = i
            rows[found, 1] = j
            found += 1
            i += 1
            j += 1
    return found

"""Compiled kernels of the ground height map (``projection.ground``).

Flat arrays in, flat arrays out (twins in ``tests/projection/twins.py``).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clipsweep.projection.jit import jit


@jit
def place(rotation: Any, translation: Any, xyz: Any, i: int) -> Any:
    """Rigid transform of point ``i`` in float64, as (x, y, z)."""
    x = np.float64(xyz[i, 0])
    y = np.float64(xyz[i, 1])
    z = np.float64(xyz[i, 2])
    return (
        rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z + translation[0],
        rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z + translation[1],
        rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z + translation[2],
    )


@jit
def gather(
    xyz: Any, rotation: Any, translation: Any, corner: Any, size: float, shape: Any, step: int,
    cell: Any, z: Any, n: int,
) -> int:  # fmt: skip
    """Bins points into ground cells: appends flat cell and height of every ``step``-th point.

    Only points inside the map, from row ``n`` on; answers the new end.
    """
    for i in range(0, xyz.shape[0], step):
        px, py, pz = place(rotation, translation, xyz, i)
        row = np.floor((px - corner[0]) / size)
        column = np.floor((py - corner[1]) / size)
        if row >= 0 and row < shape[0] and column >= 0 and column < shape[1]:
            cell[n] = np.int64(row) * shape[1] + np.int64(column)
            z[n] = pz
            n += 1
    return n


@jit
def low_quantile(cell: Any, z: Any, share: float, ground: Any) -> None:
    """Height quantile of each ground cell: writes the ``share`` quantile, inf if empty."""
    ends = np.zeros(len(ground) + 1, np.int64)
    for i in range(len(cell)):
        ends[cell[i] + 1] += 1
    for v in range(len(ground)):
        ends[v + 1] += ends[v]
    grouped = np.empty(len(z), np.float32)
    at = ends[:-1].copy()
    for i in range(len(cell)):
        grouped[at[cell[i]]] = z[i]
        at[cell[i]] += 1
    for v in range(len(ground)):
        count = ends[v + 1] - ends[v]
        ground[v] = np.inf
        if count > 0:
            ground[v] = np.sort(grouped[ends[v] : ends[v + 1]])[int(share * count)]


@jit
def grow_ground(
    low: Any, seed: Any, slope: float, step: float, size: float, reach: int, ground: Any, gap: Any
) -> None:  # fmt: skip
    """Ground segmentation by region growing from where the sensor drove (breadth first).

    A cell's height is expected to be the mean of the settled cells within ``reach`` cells, weighted
    by closeness and by how sure they are. Its lowest points ``low (h,w) f32`` (inf: none) are the
    ground if they lie within ``step + slope * d`` of that, ``d`` being the way [m] from the last
    cell whose ground was seen; else the expectation stands. So neither a car's body nor a return
    from below the road is taken for the ground. ``seed (h,w) f32`` is the height where the growth
    starts, NaN elsewhere; without a seed all stays NaN. Writes ``ground (h,w) f32`` and ``gap
    (h,w) f32``, the distance from ground that was seen [m].
    """
    height, width = low.shape
    queue = np.empty((height * width, 2), np.int32)
    state = np.zeros((height, width), np.uint8)  # 1: waiting, 2: settled
    end = 0
    for a in range(height):
        for b in range(width):
            ground[a, b] = seed[a, b]
            gap[a, b] = np.inf
            if np.isfinite(seed[a, b]):
                gap[a, b] = 0.0
                state[a, b] = 2
                queue[end, 0] = a
                queue[end, 1] = b
                end += 1
    begin = 0
    while begin < end:
        row = queue[begin, 0]
        column = queue[begin, 1]
        begin += 1
        if state[row, column] != 2:
            total = 0.0
            weights = 0.0
            nearest = np.inf
            for a in range(max(0, row - reach), min(height, row + reach + 1)):
                for b in range(max(0, column - reach), min(width, column + reach + 1)):
                    if state[a, b] == 2:
                        away = np.sqrt(np.float64((a - row) ** 2 + (b - column) ** 2))
                        weight = 1.0 / (away * away * (0.5 + gap[a, b]))
                        total += weight * ground[a, b]
                        weights += weight
                        nearest = min(nearest, gap[a, b] + away * size)
            expected = total / weights
            if abs(low[row, column] - expected) <= step + slope * nearest:
                ground[row, column] = low[row, column]
                gap[row, column] = 0.0
            else:
                ground[row, column] = expected
                gap[row, column] = nearest
            state[row, column] = 2
        for a in range(max(0, row - 1), min(height, row + 2)):
            for b in range(max(0, column - 1), min(width, column + 2)):
                if state[a, b] == 0:
                    state[a, b] = 1
                    queue[end, 0] = a
                    queue[end, 1] = b
                    end += 1


@jit
def limit_slope(ground: Any, rise: float) -> None:
    """Limits the slope of a height map: cells are lowered to ``rise`` above a neighbour.

    That is a side neighbour; above a diagonal one it is ``rise * sqrt 2``.

    Two passes of the chamfer distance transform; cells without a height (inf) get one from the
    nearest that have.
    """
    last = ground.shape[0] - 1
    width = ground.shape[1]
    corner = rise * np.sqrt(2.0)
    for sweep in range(2):
        for k in range(last + 1):
            row = k if sweep == 0 else last - k
            before = row - 1 if sweep == 0 else row + 1
            for j in range(width):
                column = j if sweep == 0 else width - 1 - j
                beside = column - 1 if sweep == 0 else column + 1
                low = np.float64(ground[row, column])
                if beside >= 0 and beside < width:
                    low = min(low, ground[row, beside] + rise)
                if before >= 0 and before <= last:
                    low = min(low, ground[before, column] + rise)
                    if column > 0:
                        low = min(low, ground[before, column - 1] + corner)
                    if column < width - 1:
                        low = min(low, ground[before, column + 1] + corner)
                ground[row, column] = low


@jit
def heights(
    xyz: Any, rotation: Any, translation: Any, corner: Any, size: float, ground: Any,
    deepest: float,
    gap: Any, sure: float, height: Any, known: Any,
) -> None:  # fmt: skip
    """Height above ground of each point, bilinear between cell centres.

    NaN off the map and for points deeper than ``deepest``. ``known (n,) bool``: there is a height,
    and ground was seen within ``sure`` metres of the point's cell.
    """
    for i in range(xyz.shape[0]):
        px, py, pz = place(rotation, translation, xyz, i)
        u = (px - corner[0]) / size - 0.5
        v = (py - corner[1]) / size - 0.5
        height[i] = np.nan
        known[i] = False
        if u >= 0 and u < ground.shape[0] - 1 and v >= 0 and v < ground.shape[1] - 1:
            row = int(u)
            column = int(v)
            u = u - row
            v = v - column
            below = (1 - u) * ((1 - v) * ground[row, column] + v * ground[row, column + 1])
            below += u * ((1 - v) * ground[row + 1, column] + v * ground[row + 1, column + 1])
            if pz - below > deepest:
                height[i] = pz - below
                known[i] = gap[np.int64(row + u + 0.5), np.int64(column + v + 0.5)] <= sure


@jit
def column_of(px: float, py: float, corner: Any, size: float, shape: Any) -> int:
    """Flat index of the map column that a position lies in, -1 off the map."""
    row = np.floor((px - corner[0]) / size)
    column = np.floor((py - corner[1]) / size)
    if row >= 0 and row < shape[0] and column >= 0 and column < shape[1]:
        return np.int64(row) * shape[1] + np.int64(column)
    return -1


@jit
def stack(
    xyz: Any,
    height: Any,
    rotation: Any,
    translation: Any,
    corner: Any,
    size: float,
    shape: Any,
    lift: float,
    bits: Any,
) -> None:
    """Occupancy bits by column: sets bit ``height / lift`` of ``bits (columns,) u64`` by point.

    Points under 0.1 m are ground.
    """
    for i in range(xyz.shape[0]):
        if height[i] > 0.1 and height[i] < 64 * lift:
            px, py, _ = place(rotation, translation, xyz, i)
            column = column_of(px, py, corner, size, shape)
            if column >= 0:
                bits[column] |= np.uint64(1) << np.uint64(height[i] / lift)


@jit
def tops(
    xyz: Any, height: Any, rotation: Any, translation: Any, corner: Any, size: float, shape: Any,
    lift: float,
    gap: int, bits: Any, top: Any,
) -> None:  # fmt: skip
    """Object height at each point: the top of what the point belongs to.

    Of the bits above the point in its column, those in reach over gaps of at most ``gap`` bits.
    """
    for i in range(xyz.shape[0]):
        top[i] = height[i]
        px, py, _ = place(rotation, translation, xyz, i)
        column = column_of(px, py, corner, size, shape)
        if column < 0 or not height[i] < 64 * lift:
            continue
        level = max(0, int(height[i] / lift))
        for k in range(level + 1, 64):
            if k - level > gap:
                break
            if bits[column] >> np.uint64(k) & np.uint64(1):
                level = k
                top[i] = (k + 1) * lift

"""Compiled code of ``projection.ground``: flat arrays in, flat arrays out (twins in ``tests/projection/twins.py``)."""

from __future__ import annotations

from typing import Any

import numpy as np

from projection.jit import jit


@jit
def place(rotation: Any, translation: Any, xyz: Any, i: int) -> Any:
    """Point ``i`` after a rigid transform in float64, as (x, y, z)."""
    x, y, z = np.float64(xyz[i, 0]), np.float64(xyz[i, 1]), np.float64(xyz[i, 2])
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
    """Appends flat cell and height of every ``step``-th point inside the map from row ``n`` on; answers the new end."""
    for i in range(0, xyz.shape[0], step):
        px, py, pz = place(rotation, translation, xyz, i)
        row, column = np.floor((px - corner[0]) / size), np.floor((py - corner[1]) / size)
        if row >= 0 and row < shape[0] and column >= 0 and column < shape[1]:
            cell[n], z[n] = np.int64(row) * shape[1] + np.int64(column), pz
            n += 1
    return n


@jit
def low_quantile(cell: Any, z: Any, share: float, ground: Any) -> None:
    """Writes each flat cell's ``share`` quantile of the heights in it, inf where there are none."""
    ends = np.zeros(len(ground) + 1, np.int64)
    for i in range(len(cell)):
        ends[cell[i] + 1] += 1
    for v in range(len(ground)):
        ends[v + 1] += ends[v]
    grouped, at = np.empty(len(z), np.float32), ends[:-1].copy()
    for i in range(len(cell)):
        grouped[at[cell[i]]] = z[i]
        at[cell[i]] += 1
    for v in range(len(ground)):
        count = ends[v + 1] - ends[v]
        ground[v] = np.inf
        if count > 0:
            ground[v] = np.sort(grouped[ends[v] : ends[v + 1]])[int(share * count)]


@jit
def fill_pits(ground: Any, rank: int, reach: int, filled: Any) -> None:
    """Raises each cell to at least the ``rank``-th lowest of its neighbourhood (0 = lowest), itself included."""
    heights, near = ground.shape[0], np.empty((2 * reach + 1) ** 2, np.float32)
    for row in range(heights):
        for column in range(ground.shape[1]):
            filled[row, column] = np.inf
            if not np.isfinite(ground[row, column]):
                continue
            count = 0
            for a in range(max(0, row - reach), min(heights, row + reach + 1)):
                for b in range(max(0, column - reach), min(ground.shape[1], column + reach + 1)):
                    if np.isfinite(ground[a, b]):
                        near[count] = ground[a, b]
                        count += 1
            if count > rank:
                filled[row, column] = max(ground[row, column], np.sort(near[:count])[rank])


@jit
def limit_slope(ground: Any, rise: float) -> None:
    """Lowers cells until no cell is more than ``rise`` above a side neighbour (``rise * sqrt 2`` above a diagonal one).

    Two passes of the chamfer distance transform; cells without a height (inf) get one from the nearest that have.
    """
    last, width = ground.shape[0] - 1, ground.shape[1]
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
    xyz: Any, rotation: Any, translation: Any, corner: Any, size: float, ground: Any, deepest: float, height: Any
) -> None:
    """Writes each point's height above the ground, bilinear between cell centres; NaN off the map and too deep."""
    for i in range(xyz.shape[0]):
        px, py, pz = place(rotation, translation, xyz, i)
        u, v = (px - corner[0]) / size - 0.5, (py - corner[1]) / size - 0.5
        height[i] = np.nan
        if u >= 0 and u < ground.shape[0] - 1 and v >= 0 and v < ground.shape[1] - 1:
            row, column = int(u), int(v)
            u, v = u - row, v - column
            below = (1 - u) * ((1 - v) * ground[row, column] + v * ground[row, column + 1])
            below += u * ((1 - v) * ground[row + 1, column] + v * ground[row + 1, column + 1])
            if pz - below > deepest:
                height[i] = pz - below


@jit
def column_of(px: float, py: float, corner: Any, size: float, shape: Any) -> int:
    """Flat column that a place lies in, -1 off the map."""
    row, column = np.floor((px - corner[0]) / size), np.floor((py - corner[1]) / size)
    if row >= 0 and row < shape[0] and column >= 0 and column < shape[1]:
        return np.int64(row) * shape[1] + np.int64(column)
    return -1


@jit
def stack(
    xyz: Any, height: Any, rotation: Any, translation: Any, corner: Any, size: float, shape: Any, lift: float, bits: Any
) -> None:
    """Sets bit ``height / lift`` of each point's column in ``bits (columns,) u64``; points under 0.1 m are ground."""
    for i in range(xyz.shape[0]):
        if height[i] > 0.1 and height[i] < 64 * lift:
            px, py, _ = place(rotation, translation, xyz, i)
            column = column_of(px, py, corner, size, shape)
            if column >= 0:
                bits[column] |= np.uint64(1) << np.uint64(height[i] / lift)


@jit
def tops(
    xyz: Any, height: Any, rotation: Any, translation: Any, corner: Any, size: float, shape: Any, lift: float,
    gap: int, bits: Any, top: Any,
) -> None:  # fmt: skip
    """Writes the height that one can climb to from each point, bit by bit, over gaps of at most ``gap`` bits."""
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

"""Readable NumPy twins of the compiled kernels.

Slow, written for the eye, and the oracle of the tests.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BITS = 19
HALF = 1 << 18


class Swept(NamedTuple):
    xyz: np.ndarray
    intensity: np.ndarray
    source: np.ndarray
    bad: int


def take_sweep(raw, matrix, box, far, full) -> Swept:
    """Usable rows of a sweep, moved, with their intensity in 0..1 and their row numbers.

    And how many were bad.
    """
    good = (np.abs(raw[:, :3]) <= far).all(axis=1) & np.isfinite(raw[:, 3])
    own = (np.abs(raw[:, :2]) < box).all(axis=1)
    source = np.flatnonzero(good & ~own)
    kept = raw[source].astype(np.float64)
    xyz = kept[:, :3] @ matrix[:, :3].T.astype(np.float64) + matrix[:, 3]
    return Swept(xyz, np.clip(kept[:, 3] / full, 0, 1), source, int((~good).sum()))


def deskew(xyz, time_s, turn, speed) -> np.ndarray:
    """Each point moved by the sensor's motion until its time.

    A rotation as the exponential series of its generator.
    """
    x, y, z = turn
    generator = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    moved = []
    for point, t in zip(xyz.astype(np.float64), time_s.astype(np.float64), strict=True):
        rotation = np.eye(3)
        term = np.eye(3)
        for order in range(1, 20):
            term = term @ generator * t / order
            rotation = rotation + term
        moved.append(rotation @ point + speed * t)
    return np.array(moved).reshape(-1, 3)


class Projected(NamedTuple):
    point: np.ndarray
    camera: np.ndarray
    uv: np.ndarray
    depth: np.ndarray


def project(xyz, matrix, size_wh, min_depth, border) -> Projected:
    """Pairs in float64, camera by camera, points in order."""
    parts = []
    for camera, (rows, (width, height)) in enumerate(
        zip(matrix.astype(np.float64), size_wh, strict=True)
    ):
        with np.errstate(all="ignore"):
            homogeneous = xyz.astype(np.float64) @ rows[:, :3].T + rows[:, 3]
            depth = homogeneous[:, 2]
            uv = homogeneous[:, :2] / depth[:, None]
        u, v = uv.T
        inside = (u > border) & (u < width - border) & (v > border) & (v < height - border)
        point = np.flatnonzero((depth > min_depth) & inside)
        parts.append((point, np.full(len(point), camera), uv[point], depth[point]))
    if not parts:
        return Projected(np.empty(0, int), np.empty(0, int), np.empty((0, 2)), np.empty(0))
    return Projected(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def visible(camera, uv, depth, cell_px, relative, absolute, dilate_cells) -> np.ndarray:
    """Compares each pair with every other of the cells around it."""
    cells = np.floor(uv / cell_px[camera, None]).astype(int)
    keep = np.empty(len(depth), bool)
    for i in range(len(depth)):
        near = (camera == camera[i]) & (np.abs(cells - cells[i]) <= dilate_cells).all(axis=1)
        keep[i] = depth[i] <= depth[near].min() * (1 + relative) + absolute
    return keep


def pack(rows) -> np.ndarray:
    """Keys of rows (batch, c0, c1, c2)."""
    key = [
        (int(b) << 3 * BITS) + sum((int(c) + HALF) << BITS * (2 - i) for i, c in enumerate(c3))
        for b, *c3 in rows
    ]
    return np.array(key, np.uint64)


def cell_keys(xyz, rotation, translation, size) -> np.ndarray:
    cells = np.floor((xyz.astype(np.float64) @ rotation.T + translation) / size)
    return pack(np.concatenate([np.zeros((len(xyz), 1)), cells], axis=1))


class Distinct(NamedTuple):
    keys: np.ndarray
    inverse: np.ndarray


def distinct(keys) -> Distinct:
    """Distinct keys in order of first sight, and each key's number."""
    number: dict[int, int] = {}
    inverse = [number.setdefault(int(key), len(number)) for key in keys]
    return Distinct(np.array(list(number), np.uint64), np.array(inverse, np.int32))


def find(wanted, keys) -> np.ndarray:
    number = {int(key): i for i, key in enumerate(keys)}
    return np.array([number.get(int(key), -1) for key in wanted], np.int32)


def tally(cell, label, amount, one, shape) -> np.ndarray:
    sums = np.zeros(shape, np.int64)
    np.add.at(sums, (cell, label), np.rint(amount.astype(np.float64) * one).astype(np.int64))
    return sums


# --- votes ----------------------------------------------------------------------------------------


class Vote(NamedTuple):
    xyz: np.ndarray
    group: int
    label: int
    weight: float
    score: float


def shares(votes: list[Vote], xyz, group, size, classes, flat) -> np.ndarray:
    """Each class's share of the votes around a place, a vote weighing by the cell that it lies in.

    Cells weigh by the overlap of a cell around the place with them: trilinear interpolation.
    """
    axes = 2 if flat else 3
    found = np.zeros(classes)
    for vote in votes:
        centre = (np.floor(vote.xyz[:axes] / size) + 0.5) * size
        overlap = np.clip(1 - np.abs(xyz[:axes] - centre) / size, 0, None).prod()
        if vote.group == group:
            found[vote.label] += overlap * vote.weight
    return found


def class_weight(limits, label, height, top, known) -> float:
    """0 where a class cannot be, a little where it seldom is, else 1."""
    if not known:
        return 1.0
    if limits.ground[label]:
        return float(height < 0.2)
    if top > limits.max_height_m[label]:
        return 0.0
    return 0.1 if height < 0.05 and limits.ground.any() else 1.0


class Decided(NamedTuple):
    label: int
    agreement: float
    weights: np.ndarray


def decide(levels, limits, height, top, known) -> Decided:
    """The class with the largest weighted sum of shares; ``levels`` are pairs of weight and votes.

    The last level is the cluster's, which counts only where there are votes on another one.
    """
    total = 0.0
    mixed = 0.0
    if not any(votes.sum() > 0 for _, votes in levels[:-1]):
        return Decided(255, 0.0, np.zeros(1))
    for weight, votes in levels:
        if votes.sum() > 0:
            total += weight
            mixed = mixed + weight * votes / votes.sum()
    if total == 0.0:
        return Decided(255, 0.0, np.zeros(1))
    factors = [class_weight(limits, c, height, top, known) for c in range(len(mixed))]
    weights = mixed * factors
    if weights.max() == 0:
        return Decided(255, 0.0, weights)
    return Decided(int(weights.argmax()), weights.max() / total, weights)


def clusters(cells) -> list[set[int]]:
    """Sets of rows whose cells ``(kind, x, y, z)`` are connected, by flooding."""
    left = set(range(len(cells)))
    found = []
    while left:
        waiting = [left.pop()]
        cluster = set()
        while waiting:
            row = waiting.pop()
            cluster.add(row)
            away = np.abs(cells - cells[row])
            near = np.flatnonzero((away[:, 0] == 0) & (away[:, 1:].max(axis=1) <= 1))
            waiting += [n for n in near.tolist() if n in left]
            left -= set(near.tolist())
        found.append(cluster)
    return found


# --- ground ---------------------------------------------------------------------------------------


def squares(xy, corner, size, shape) -> np.ndarray:
    """Flat square of each place, -1 off the map."""
    index = np.floor((xy - corner) / size)
    inside = ((index >= 0) & (index < shape)).all(axis=1)
    return np.where(inside, index[:, 0] * shape[1] + index[:, 1], -1).astype(int)


def low_quantile(cell, z, share, cells) -> np.ndarray:
    ground = np.full(cells, np.inf)
    for v in range(cells):
        inside = np.sort(z[cell == v])
        if len(inside):
            ground[v] = inside[int(share * len(inside))]
    return ground


class Grown(NamedTuple):
    ground: np.ndarray
    gap: np.ndarray


def grow_ground(low, seed, slope, step, size, dilate_cells) -> Grown:
    """Settles cells ring by ring around the seeds, each from the settled ones near it."""
    ground = seed.astype(np.float64)
    gap = np.where(np.isfinite(seed), 0.0, np.inf)
    waiting = [tuple(cell) for cell in np.argwhere(np.isfinite(seed))]
    reached = set(waiting)
    settled = set(waiting)
    while waiting:
        row, column = waiting.pop(0)
        if (row, column) not in settled:
            near = [
                (a, b) for a, b in settled if max(abs(a - row), abs(b - column)) <= dilate_cells
            ]
            away = np.array([np.hypot(a - row, b - column) for a, b in near])
            gaps = np.array([gap[cell] for cell in near])
            weight = 1 / (away**2 * (0.5 + gaps))
            expected = (weight * [ground[cell] for cell in near]).sum() / weight.sum()
            way = (gaps + away * size).min()
            seen = abs(low[row, column] - expected) <= step + slope * way
            ground[row, column] = low[row, column] if seen else expected
            gap[row, column] = 0.0 if seen else way
            settled.add((row, column))
        for cell in ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)):
            if 0 <= cell[0] < low.shape[0] and 0 <= cell[1] < low.shape[1] and cell not in reached:
                reached.add(cell)
                waiting.append(cell)
    return Grown(ground, gap)


def limit_slope(ground, rise) -> np.ndarray:
    """Lower envelope over all cells.

    Height there plus the rise along the shortest path of side and diagonal steps.
    """
    limited = np.empty(ground.shape)
    rows, columns = np.indices(ground.shape)
    for row, column in np.ndindex(ground.shape):
        apart = np.stack([np.abs(rows - row), np.abs(columns - column)])
        path = apart.max(axis=0) + (np.sqrt(2) - 1) * apart.min(axis=0)
        limited[row, column] = (ground + rise * path).min()
    return limited


def heights(xyz, corner, size, ground, deepest) -> np.ndarray:
    """Heights above the ground, bilinear between the four cell centres around each point.

    NaN where one is missing or the point is too deep.
    """
    height = np.full(len(xyz), np.nan)
    for i, (x, y, z) in enumerate(xyz.astype(np.float64)):
        u = (x - corner[0]) / size - 0.5
        v = (y - corner[1]) / size - 0.5
        if 0 <= u < ground.shape[0] - 1 and 0 <= v < ground.shape[1] - 1:
            row = int(u)
            column = int(v)
            along = np.array([1 - (u - row), u - row]) @ ground[
                row : row + 2, column : column + 2
            ].astype(np.float64)
            below = along @ np.array([1 - (v - column), v - column])
            height[i] = z - below if z - below > deepest else np.nan
    return height


def stack(xyz, height, corner, size, shape, lift) -> dict[int, set[int]]:
    """Occupied steps of each column that has any."""
    columns: dict[int, set[int]] = {}
    for square, h in zip(squares(xyz[:, :2], corner, size, shape), height, strict=True):
        if square >= 0 and 0.1 < h < 64 * lift:
            columns.setdefault(int(square), set()).add(int(h / lift))
    return columns


def tops(xyz, height, corner, size, shape, lift, gap, columns: dict[int, set[int]]) -> np.ndarray:
    """Climbs each point's column step by step."""
    top = height.copy()
    for i, square in enumerate(squares(xyz[:, :2], corner, size, shape)):
        if square < 0 or not height[i] < 64 * lift:
            continue
        level = max(0, int(height[i] / lift))
        for step in sorted(columns.get(int(square), ())):
            if level < step <= level + gap:
                level = step
                top[i] = (step + 1) * lift
    return top

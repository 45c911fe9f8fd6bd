"""Compiled kernels of the label votes (``projection.votes``).

Flat arrays in, flat arrays out. The tests hold them against readable NumPy
(``tests/projection/twins.py``).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64, UInt64

from clipsweep.projection.jit import jit
from clipsweep.projection.kernels import find_one, pack

_NONE = 255
_PLANE_BITS = 14  # of a cell coordinate in a key that has two of them and a cluster


class Level(NamedTuple):
    """Label votes in voxels of one size.

    Attributes:
        size: side of the cells [m].
        share: what the share of the votes here weighs beside the other levels.
        flat: whether cells have no height and belong to a cluster, instead of a kind of place.
        keys: packed key of each cell with a vote.
        table: hash table over them.
        sums: weight of the votes for each class, in fixed point.
        scores: their confidences, likewise; no rows on the fine level.
        support: their number; no rows on the fine level.
    """

    size: float
    share: float
    flat: bool
    keys: UInt64[np.ndarray, " v"]
    table: Int32[np.ndarray, " slots"]
    sums: Int64[np.ndarray, "v c"]
    scores: Int64[np.ndarray, "w c"]
    support: Int64[np.ndarray, "w c"]


class Limits(NamedTuple):
    """Class limits by height; see ``projection.votes.ClassLimits``."""

    ground: Any
    max_height: Any
    taller: Any
    ground_m: float
    flush_m: float
    flush_weight: float
    active: bool


@jit
def level_key(flat: bool, group: Any, c0: Any, c1: Any, c2: Any) -> Any:
    """Packed voxel key on a level: by kind of place, or by cluster."""
    if flat:
        half = 1 << (_PLANE_BITS - 1)
        row = (np.int64(group) << (2 * _PLANE_BITS)) | ((c0 + half) << _PLANE_BITS) | (c1 + half)
        return np.uint64(row)
    return pack(np.int64(group), c0, c1, c2)


@jit
def vote_keys(xyz: Any, group: Any, size: float, flat: bool, keys: Any) -> None:
    """Writes the voxel key of each point for the vote grid."""
    for i in range(xyz.shape[0]):
        c0 = np.int64(np.floor(xyz[i, 0] / size))
        c1 = np.int64(np.floor(xyz[i, 1] / size))
        c2 = np.int64(np.floor(xyz[i, 2] / size))
        keys[i] = level_key(flat, group[i], c0, c1, c2)


@jit
def tally(cell: Any, label: Any, amount: Any, one: float, sign: int, sums: Any) -> None:
    """Sums vote weights by voxel and class: adds (sign 1) or takes away (-1) each vote.

    ``amount (m,) f32`` counts in units of ``1 / one``. ``sums (v,c) i64``: sums of integers do not
    depend on the order of the votes.
    """
    for i in range(len(cell)):
        sums[cell[i], label[i]] += sign * np.int64(np.rint(amount[i] * one))


@jit
def count(cell: Any, label: Any, sign: int, support: Any) -> None:
    """Counts votes by voxel and class in ``support (v,c) i64``: adds (sign 1), removes (-1)."""
    for i in range(len(cell)):
        support[cell[i], label[i]] += sign


@jit
def class_weight(limits: Any, label: Any, height: Any, top: Any, known: Any) -> Any:
    """Vote weight of a class by height above ground: 0 where it cannot be, 1 without a limit."""
    if not (known and limits.active):
        return 1.0
    if limits.ground[label]:
        return 1.0 if height < limits.ground_m else 0.0
    if top > limits.max_height[label]:
        return 0.0
    return limits.flush_weight if height < limits.flush_m else 1.0


@jit
def limit_votes(
    limits: Any, height: Any, top: Any, known: Any, point: Any, label: Any, weight: Any
) -> None:
    """Applies class limits to votes: relabels what is too tall, and weights by height.

    ``point (m,)`` is the row of each vote in ``height``, ``top`` and ``known``; ``label`` and
    ``weight`` are changed in place.
    """
    for i in range(len(point)):
        p = point[i]
        if limits.active and known[p] and top[p] > limits.max_height[label[i]]:
            label[i] = limits.taller[label[i]]
        weight[i] *= class_weight(limits, label[i], height[p], top[p], known[p])


@jit
def gather(level: Any, group: Any, x: Any, y: Any, z: Any, rows: Any, weights: Any) -> int:
    """Trilinear interpolation of votes: writes rows and weights of the voxels around a point.

    Answers how many.

    Cells are weighted as in interpolation between their centres (between four, on a flat level), so
    that a label does not jump where a cell ends.
    """
    u = x / level.size - 0.5
    v = y / level.size - 0.5
    w = z / level.size - 0.5
    a = np.floor(u)
    b = np.floor(v)
    c = np.floor(w)
    found = 0
    for corner in range(4 if level.flat else 8):
        i = corner & 1
        j = (corner >> 1) & 1
        k = corner >> 2
        key = level_key(level.flat, group, np.int64(a) + i, np.int64(b) + j, np.int64(c) + k)
        row = find_one(key, level.keys, level.table)
        if row >= 0:
            share = (u - a if i else 1.0 - (u - a)) * (v - b if j else 1.0 - (v - b))
            if not level.flat:
                share *= w - c if k else 1.0 - (w - c)
            rows[found] = row
            weights[found] = share
            found += 1
    return found


@jit
def add_shares(level: Any, rows: Any, weights: Any, found: int, mine: Any, share: Any) -> float:
    """Adds each class's share of the votes around a point on a level to ``share (c,)``.

    Answers its weight.
    """
    classes = len(share)
    for c in range(classes):
        mine[c] = 0.0
    for n in range(found):
        for c in range(classes):
            mine[c] += weights[n] * level.sums[rows[n], c]
    total = mine.sum()
    if total <= 0.0:
        return 0.0
    for c in range(classes):
        share[c] += level.share * mine[c] / total
    return level.share


@jit
def mean_score(level: Any, rows: Any, weights: Any, found: int, label: Any) -> Any:
    """Mean confidence and number of the votes for a class around a point on a level."""
    confidence = 0.0
    counted = 0.0
    votes = 0
    for n in range(found):
        support = level.support[rows[n], label]
        confidence += weights[n] * level.scores[rows[n], label]
        counted += weights[n] * support
        votes += support
    return (confidence / counted if counted > 0.0 else 0.0), votes


@jit
def decide(
    xyz: Any, kind: Any, cluster: Any, height: Any, top: Any, known: Any, limits: Any,
    fine: Any, coarse: Any, whole: Any, label: Any, score: Any, agreement: Any, votes: Any,
) -> None:  # fmt: skip
    """Writes each point's fused label: the class of most weight around it (lower id on a tie).

    ``fine``, ``coarse`` and ``whole`` are levels; one without votes around a point is passed over.
    Points without votes in the fine and coarse cells around them are left untouched: a cluster's
    votes from afar decide between labels that were seen nearby, and do not stand in for them.
    ``score`` (in the fixed point of the levels) and the number of ``votes`` are those of the coarse
    level, or of the cluster if the winner has none there.
    """
    classes = coarse.sums.shape[1]
    share = np.empty(classes)
    mine = np.empty(classes)
    rows = np.empty(8, np.int64)
    weights = np.empty(8)
    far_rows = np.empty(8, np.int64)
    far_weights = np.empty(8)
    for i in range(xyz.shape[0]):
        x = np.float64(xyz[i, 0])
        y = np.float64(xyz[i, 1])
        z = np.float64(xyz[i, 2])
        share[:] = 0.0
        found = gather(fine, kind[i], x, y, z, rows, weights)
        total = add_shares(fine, rows, weights, found, mine, share)
        found = gather(coarse, kind[i], x, y, z, rows, weights)
        total += add_shares(coarse, rows, weights, found, mine, share)
        if total == 0.0:
            continue
        of_cluster = 0
        if cluster[i] >= 0:
            of_cluster = gather(whole, cluster[i], x, y, z, far_rows, far_weights)
            total += add_shares(whole, far_rows, far_weights, of_cluster, mine, share)
        best = 0.0
        for c in range(classes):
            weight = share[c] * class_weight(limits, c, height[i], top[i], known[i])
            if weight > best:
                best = weight
                label[i] = c
        if label[i] != _NONE:
            agreement[i] = best / total
            score[i], votes[i] = mean_score(coarse, rows, weights, found, label[i])
            if votes[i] == 0:
                score[i], votes[i] = mean_score(whole, far_rows, far_weights, of_cluster, label[i])


@jit
def majority(sums: Any, cell: Any, label: Any) -> None:
    """Majority vote: writes the class with the most weight in each point's cell.

    Points without a cell (-1), or in one without votes, are left untouched.
    """
    for i in range(len(cell)):
        if cell[i] >= 0:
            best = 0
            for c in range(sums.shape[1]):
                if sums[cell[i], c] > best:
                    best = sums[cell[i], c]
                    label[i] = c

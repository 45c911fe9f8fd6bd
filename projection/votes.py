"""Label fusion by voting: weighted votes of pixel labels in a voxel grid, point labels from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt64

from clipsweep.projection import votes_kernels as kernels
from clipsweep.projection.frames import NONE
from clipsweep.projection.grid import index_cells
from clipsweep.projection.ground import Heights

NO_CLUSTER = -1
"""Cluster of points that are part of no object."""

_ONE = 65536.0  # fixed point: integer sums do not depend on the order of the votes
_GROUND_M = 0.2  # what lies on the ground is no higher
_FLUSH_M = 0.05  # and what stands on it seldom as low
_FLUSH_WEIGHT = 0.1


@dataclass(frozen=True, eq=False, slots=True)
class ClassLimits:
    """Limits on the points of a class: height above ground, ground only, one class a vehicle.

    A class that is not listed has no limits. Heights count where the ground is known for sure
    (``projection.ground.Heights.known``).

    Attributes:
        ground: classes that lie flat on the ground and nowhere else: under 0.2 m above it. All
            other classes weigh a tenth under 0.05 m.
        max_height_m: what is taller than this, or part of something taller, is not of the class;
            inf = no limit.
        taller: what a pixel's label means instead where the object is too tall for it: a car of
            3.5 m is a truck. The class itself where there is no such class.
        vehicle: classes of rigid vehicles, of which one object has one class
            (``projection.objects``).
    """

    ground: Bool[np.ndarray, " c"]
    max_height_m: Float32[np.ndarray, " c"]
    taller: UInt8[np.ndarray, " c"]
    vehicle: Bool[np.ndarray, " c"]

    @staticmethod
    def none(classes: int) -> ClassLimits:
        """No limits for any class."""
        return ClassLimits(
            np.zeros(classes, np.bool_),
            np.full(classes, np.inf, np.float32),
            np.arange(classes, dtype=np.uint8),
            np.zeros(classes, np.bool_),
        )

    def packed(self) -> kernels.Limits:
        """Class limits in the form that the compiled kernels take."""
        flush_weight = _FLUSH_WEIGHT if self.ground.any() else 1.0
        active = bool(self.ground.any() or np.isfinite(self.max_height_m).any())
        return kernels.Limits(
            self.ground, self.max_height_m, self.taller, _GROUND_M, _FLUSH_M, flush_weight, active
        )


@dataclass(frozen=True, eq=False, slots=True)
class Places:
    """Positions, heights and clusters of a key frame's points in the voxel grid.

    Attributes:
        xyz: in the frame of the grid [m].
        kind: 0 to 127; points of different kinds never share votes.
        cluster: of the object that the point is part of, or ``NO_CLUSTER``.
        heights: above the ground.
    """

    xyz: Float32[np.ndarray, "n 3"]
    kind: UInt8[np.ndarray, " n"]
    cluster: Int32[np.ndarray, " n"]
    heights: Heights

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, rows: slice) -> Places:
        heights = Heights(*(getattr(self.heights, name)[rows] for name in Heights.__slots__))
        return Places(self.xyz[rows], self.kind[rows], self.cluster[rows], heights)


@dataclass(frozen=True, eq=False, slots=True)
class Votes:
    """Votes of a key frame's pixel labels for the points that they show, weighted.

    Attributes:
        places: where the key frame's points are.
        point: the point voted for.
        label: class voted for; never 255.
        weight: how much the vote counts, > 0.
        score: the teacher's confidence, 0..1.
    """

    places: Places
    point: Int32[np.ndarray, " m"]
    label: UInt8[np.ndarray, " m"]
    weight: Float32[np.ndarray, " m"]
    score: Float32[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.point)

    def limited(self, limits: ClassLimits) -> Votes:
        """Votes that the class limits allow: weighted, relabelled where the object is too tall.

        Those of weight 0 are left out.
        """
        label = self.label.copy()
        weight = self.weight.copy()
        heights = self.places.heights
        kernels.limit_votes(
            limits.packed(), heights.height, heights.top, heights.known, self.point, label, weight
        )
        kept = np.flatnonzero(weight > 0)
        return Votes(self.places, self.point[kept], label[kept], weight[kept], self.score[kept])


@dataclass(frozen=True, eq=False, slots=True)
class FusedLabels:
    """Fused label, score and agreement of each point.

    Attributes:
        label: class with the most weight, 255 where fewer than the minimum of votes support it.
        score: mean confidence of the votes for it around the point.
        agreement: its share of the weight of all votes.
        support: number of votes for it in the coarse cells around the point, or in its cluster
            where it has none there.
    """

    label: UInt8[np.ndarray, " n"]
    score: Float32[np.ndarray, " n"]
    agreement: Float32[np.ndarray, " n"]
    support: Int32[np.ndarray, " n"]

    @staticmethod
    def joined(parts: Sequence[FusedLabels]) -> FusedLabels:
        """Fused labels of several point clouds, one after the other."""
        return FusedLabels(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in FusedLabels.__slots__
            )
        )

    def __getitem__(self, rows: slice) -> FusedLabels:
        return FusedLabels(*(getattr(self, name)[rows] for name in FusedLabels.__slots__))


class VoteGrid:
    """Voxel grid of label votes in fine cells, coarse cells and clusters, added frame by frame.

    A point's label is the class with the largest share of the votes around it: those of the fine
    cells weigh ``fine_weight``, those of its cluster ``cluster_weight``, those of the coarse cells
    the rest. A point without votes in the cells around it gets no label: the cluster only ranks
    classes that have votes nearby. Cells around a point are interpolated, so that
    results hardly depend on where the grid lies. A frame's votes can be added and taken out again;
    sums are integers, so neither the order of the votes nor what was added and taken out before can
    matter.

    Args:
        votes: of each key frame.
        classes: number of classes; every vote's label is below it.
        cell_m: side of a fine cell [m].
        coarse_cell_m: side of a coarse cell [m].
        cluster_reach_m: votes of one cluster are shared over about this distance [m].
        fine_weight: weight of the fine cells, 0..1.
        cluster_weight: weight of the clusters, 0..1.
    """

    def __init__(
        self,
        votes: Sequence[Votes],
        classes: int,
        cell_m: float,
        coarse_cell_m: float,
        cluster_reach_m: float,
        fine_weight: float,
        cluster_weight: float,
    ) -> None:
        self._votes = votes
        self._ends = np.cumsum([0, *map(len, votes)])
        rest = max(0.0, round(1.0 - fine_weight - cluster_weight, 9))
        self._levels: list[kernels.Level] = []
        self._cells: list[Int32[np.ndarray, " m"]] = []
        for size_m, share, flat, scored in (
            (cell_m, fine_weight, False, False),
            (coarse_cell_m, rest, False, True),
            (cluster_reach_m, cluster_weight, True, True),
        ):
            keys = np.concatenate(
                [_keys(each, size_m, flat) for each in votes] or [np.empty(0, np.uint64)]
            )
            index, cell = index_cells(keys)
            scores = len(index) if scored else 0
            sums = [_zeros(cells, classes) for cells in (len(index), scores, scores)]
            level = kernels.Level(size_m, share, flat, index.keys, index.table, *sums)
            self._levels.append(level)
            self._cells.append(cell)

    def add(self, frame: int) -> None:
        """Adds the votes of ``votes[frame]`` to the grid."""
        self._count(frame, 1)

    def drop(self, frame: int) -> None:
        """Removes the votes of ``votes[frame]``, added before, from the grid."""
        self._count(frame, -1)

    def _count(self, frame: int, sign: int) -> None:
        votes = self._votes[frame]
        rows = slice(self._ends[frame], self._ends[frame + 1])
        clustered = np.flatnonzero(votes.places.cluster[votes.point] != NO_CLUSTER)
        for level, cells in zip(self._levels, self._cells, strict=True):
            some = clustered if level.flat else slice(None)
            cell = cells[rows][some]
            label = votes.label[some]
            kernels.tally(cell, label, votes.weight[some], _ONE, sign, level.sums)
            if len(level.support):
                kernels.tally(cell, label, votes.score[some], _ONE, sign, level.scores)
                kernels.count(cell, label, sign, level.support)

    def labels(
        self,
        places: Places,
        limits: ClassLimits,
        min_support: int = 1,
        min_agreement: float = 0.0,
    ) -> FusedLabels:
        """Fused labels of points by the votes in the grid.

        Args:
            places: where the points are.
            limits: where the points of each class can be.
            min_support: votes for the winner that a label needs.
            min_agreement: share of the weight that a label needs.
        """
        n = len(places)
        label = np.full(n, NONE, np.uint8)
        support = np.zeros(n, np.int32)
        score = np.zeros(n, np.float32)
        agreement = np.zeros(n, np.float32)
        fine, coarse, whole = self._levels
        heights = places.heights
        kernels.decide(
            places.xyz, places.kind, places.cluster, heights.height, heights.top, heights.known,
            limits.packed(), fine, coarse, whole, label, score, agreement, support,
        )  # fmt: skip
        score /= _ONE
        unsure = (label != NONE) & ((support < min_support) | (agreement < min_agreement))
        label[unsure] = NONE
        score[unsure] = 0
        agreement[unsure] = 0
        return FusedLabels(label, score, agreement, support)


def _zeros(cells: int, classes: int) -> Int64[np.ndarray, "v c"]:
    """Allocates zeroed vote sums in huge pages.

    NumPy asks for these in ``empty``, not in ``zeros``, whose page faults cost time.
    """
    sums = np.empty((cells, classes), np.int64)
    sums.fill(0)
    return sums


def _keys(votes: Votes, size_m: float, flat: bool) -> UInt64[np.ndarray, " m"]:
    """Voxel key of each vote; on the level of clusters, of its cluster there."""
    places = votes.places
    group = places.cluster if flat else places.kind
    keys = np.empty(len(votes), np.uint64)
    kernels.vote_keys(places.xyz[votes.point], group[votes.point], size_m, flat, keys)
    return keys


def vote_in_cells(
    cell: UInt64[np.ndarray, " m"],
    label: UInt8[np.ndarray, " m"],
    weight: Float32[np.ndarray, " m"],
    classes: int,
    wanted: UInt64[np.ndarray, " n"],
) -> UInt8[np.ndarray, " n"]:
    """Majority vote in single voxels, the usual label fusion baseline; 255 without votes.

    Args:
        cell: key of each vote's cell (``projection.grid.cell_keys``).
        label: class voted for, below ``classes``.
        weight: how much each vote counts.
        classes: number of classes.
        wanted: keys of the cells to be labelled.
    """
    index, row = index_cells(cell)
    sums = _zeros(len(index), classes)
    kernels.tally(row, label, weight, _ONE, 1, sums)
    labels = np.full(len(wanted), NONE, np.uint8)
    kernels.majority(sums, index.find(wanted), labels)
    return labels

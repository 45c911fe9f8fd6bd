"""Counts weighted votes of pixels in cells of space, and asks what they say of a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64, UInt8, UInt64

from projection import kernels
from projection.frames import NONE
from projection.grid import CellIndex, index_cells

_ONE = 65536.0  # fixed point: integer sums do not depend on the order of the votes


@dataclass(frozen=True, eq=False, slots=True)
class Votes:
    """What the pixels of one key frame say, as weighted votes in the cells of one grid or of a fine and a coarse one.

    Attributes:
        cell: packed keys of the cells that the voting point lies in, the fine one first.
        label: class voted for; never 255.
        weight: how much the vote counts, > 0.
        score: the teacher's confidence, 0..1.
    """

    cell: UInt64[np.ndarray, "m grids"]
    label: UInt8[np.ndarray, " m"]
    weight: Float32[np.ndarray, " m"]
    score: Float32[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True, eq=False, slots=True)
class Opinions:
    """The outcome of a vote, for each point asked about.

    Attributes:
        label: class with the most weight, 255 where fewer than the minimum of votes support it.
        score: mean confidence of the votes for it.
        agreement: its share of the weight of all votes.
        support: number of votes for it (in the coarse cell, if there are two).
    """

    label: UInt8[np.ndarray, " n"]
    score: Float32[np.ndarray, " n"]
    agreement: Float32[np.ndarray, " n"]
    support: Int32[np.ndarray, " n"]


class Poll:
    """The votes of a drive in its cells, counted frame by frame: a frame's votes can be added and taken out again.

    Sums are integers, so neither the order of the votes nor what was added and taken out before can matter.

    Args:
        votes: of each frame, all with the same number of grids, 1 or 2.
        classes: number of classes; every vote's label is below it.
        fine_share: what the share of votes in the fine cell weighs against the share in the coarse one.
    """

    def __init__(self, votes: Sequence[Votes], classes: int, fine_share: float = 1.0) -> None:
        self._ends = np.cumsum([0, *map(len, votes)])
        self._label = _joined([v.label for v in votes], np.uint8)
        self._weight = _joined([v.weight for v in votes], np.float32)
        self._score = _joined([v.score for v in votes], np.float32)
        grids = votes[0].cell.shape[1] if votes else 1
        self._index: list[CellIndex] = []
        self._cell: list[Int32[np.ndarray, " m"]] = []
        self._sums: list[Int64[np.ndarray, "v c"]] = []
        for grid in range(grids):
            index, cell = index_cells(_joined([v.cell[:, grid] for v in votes], np.uint64))
            self._index.append(index)
            self._cell.append(cell)
            self._sums.append(_zeros(len(index), classes))
        self._support, self._scores = _zeros(len(self._index[-1]), classes), _zeros(len(self._index[-1]), classes)
        self._fine_share = fine_share

    def add(self, frame: int) -> None:
        """Counts the votes of ``votes[frame]`` in."""
        self._count(frame, 1)

    def drop(self, frame: int) -> None:
        """Takes the votes of ``votes[frame]``, counted in before, out again."""
        self._count(frame, -1)

    def _count(self, frame: int, sign: int) -> None:
        rows = slice(self._ends[frame], self._ends[frame + 1])
        for cell, sums in zip(self._cell, self._sums, strict=True):
            kernels.tally(cell[rows], self._label[rows], self._weight[rows], _ONE, sign, sums)
        kernels.tally(self._cell[-1][rows], self._label[rows], self._score[rows], _ONE, sign, self._scores)
        kernels.count(self._cell[-1][rows], self._label[rows], sign, self._support)

    def opinions(
        self,
        cell: UInt64[np.ndarray, "n grids"],
        allowed: Bool[np.ndarray, "n c"] | None = None,
        min_support: int = 1,
        min_agreement: float = 0.0,
    ) -> Opinions:
        """What the votes counted in now say of points in these cells.

        A class's share is ``f * fine + (1 - f) * coarse``, each the class's share of the weight in that cell, and
        ``coarse`` alone where nobody voted in the fine cell.

        Args:
            cell: keys of the cells of each point, as in ``Votes``.
            allowed: classes that each point may get; the others' votes are passed over.
            min_support: votes for the winner that an opinion needs.
            min_agreement: share of the weight that an opinion needs.
        """
        at = [index.find(np.ascontiguousarray(cell[:, grid])) for grid, index in enumerate(self._index)]
        if len(at) > 1 or allowed is not None:
            return self._decide(at, allowed, min_support, min_agreement)
        # all points of a cell are told the same: decide once for each cell, and once more for "no cell"
        each = np.arange(-1, len(self._index[0]), dtype=np.int32)
        said = self._decide([each], None, min_support, min_agreement)
        return Opinions(*(getattr(said, name)[at[0] + 1] for name in Opinions.__slots__))

    def _decide(
        self,
        at: Sequence[Int32[np.ndarray, " n"]],
        allowed: Bool[np.ndarray, "n c"] | None,
        min_support: int,
        min_agreement: float,
    ) -> Opinions:
        n, classes = len(at[0]), self._support.shape[1]
        label, agreement = np.full(n, NONE, np.uint8), np.zeros(n, np.float32)
        mask = np.ones((1, classes), np.bool_) if allowed is None else allowed
        scale = [np.empty(len(index)) for index in self._index]
        for sums, by in zip(self._sums, scale, strict=True):
            kernels.row_shares(sums, by)
        share = self._fine_share if len(at) > 1 else 1.0
        if len(self._label):
            kernels.decide(
                at[0], at[-1], self._sums[0], self._sums[-1], scale[0], scale[-1], share, mask, label, agreement
            )
        support, score = np.zeros(n, np.int32), np.zeros(n, np.float32)
        heard = np.flatnonzero(label != NONE)
        heard = heard[at[-1][heard] >= 0]  # rounding, or cells that do not nest: a vote in the fine cell alone
        where = at[-1][heard], label[heard]
        support[heard] = self._support[where]
        score[heard] = self._scores[where] / (np.maximum(support[heard], 1) * _ONE)
        unsure = (label != NONE) & ((support < min_support) | (agreement < min_agreement))
        label[unsure], score[unsure], agreement[unsure] = NONE, 0, 0
        return Opinions(label, score, agreement, support)


def _zeros(cells: int, classes: int) -> Int64[np.ndarray, "v c"]:
    """Zeros; NumPy asks for huge pages in ``empty``, not in ``zeros``, whose page faults cost more than the votes."""
    sums = np.empty((cells, classes), np.int64)
    sums.fill(0)
    return sums


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, dtype), *parts]))


def fuse(
    votes: Sequence[Votes],
    cell: UInt64[np.ndarray, "n grids"],
    classes: int,
    min_support: int = 1,
    min_agreement: float = 0.0,
    fine_share: float = 1.0,
) -> Opinions:
    """Lets all votes in a cell decide on the cell's label.

    Args:
        votes: of as many key frames, cameras and sweeps as shall be heard, cells cut in one global grid.
        cell: the cells to be labelled, one row for each point.
        classes: number of classes; every vote's label is below it.
        min_support: votes for the winner that an opinion needs.
        min_agreement: share of the weight that an opinion needs.
        fine_share: see ``Poll``.
    """
    poll = Poll(votes, classes, fine_share)
    for frame in range(len(votes)):
        poll.add(frame)
    return poll.opinions(cell, None, min_support, min_agreement)

"""Turns pixel votes of cameras, sweeps and neighbouring key frames into one label per point, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8, UInt64

from projection import kernels
from projection.grid import index_cells

_ONE = 1 << 16  # fixed point: integer sums do not depend on the order of the votes


@dataclass(frozen=True, eq=False, slots=True)
class Votes:
    """What the pixels of one key frame say, as weighted votes in global cells.

    Attributes:
        cell: packed key of the global cell that the voting point lies in.
        label: class voted for; never 255.
        weight: how much the vote counts, > 0.
        score: the teacher's confidence, 0..1.
    """

    cell: UInt64[np.ndarray, " m"]
    label: UInt8[np.ndarray, " m"]
    weight: Float32[np.ndarray, " m"]
    score: Float32[np.ndarray, " m"]


@dataclass(frozen=True, eq=False, slots=True)
class Opinions:
    """The outcome of a vote, for each cell asked about.

    Attributes:
        label: class with the most weight, 255 where fewer than the minimum of votes support it.
        score: mean confidence of the votes for it.
        agreement: its share of the weight of all votes in the cell.
        support: number of votes for it.
    """

    label: UInt8[np.ndarray, " n"]
    score: Float32[np.ndarray, " n"]
    agreement: Float32[np.ndarray, " n"]
    support: Int32[np.ndarray, " n"]


def _fixed(values: Float32[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
    return np.rint(values * _ONE).astype(np.int64)


def fuse(
    votes: Sequence[Votes],
    cell: UInt64[np.ndarray, " n"],
    classes: int,
    min_support: int = 1,
    min_agreement: float = 0.0,
) -> Opinions:
    """Lets all votes in a cell decide on the cell's label (method.md section 5, "consolidated point labels").

    Args:
        votes: of as many key frames, cameras and sweeps as shall be heard, cells cut in one global grid.
        cell: the cells to be labelled, one for each point.
        classes: number of classes; every vote's label is below it.
        min_support: votes for the winner that an opinion needs.
        min_agreement: share of the weight that an opinion needs.
    """
    index, of_vote = index_cells(np.concatenate([v.cell for v in votes]) if votes else np.empty(0, np.uint64))
    label = np.full(len(cell), 255, np.uint8)
    score, agreement = np.zeros(len(cell), np.float32), np.zeros(len(cell), np.float32)
    support = np.zeros(len(cell), np.int32)
    if not len(index):
        return Opinions(label, score, agreement, support)

    voted = np.concatenate([v.label for v in votes])
    sums = np.zeros((len(index), classes), np.int64)
    kernels.tally(of_vote, voted, _fixed(np.concatenate([v.weight for v in votes])), sums)
    winner, share = np.empty(len(index), np.uint8), np.empty(len(index), np.float32)
    kernels.winners(sums, winner, share)
    backers, score_sum = np.zeros(len(index), np.int32), np.zeros(len(index), np.int64)
    kernels.back(of_vote, voted, _fixed(np.concatenate([v.score for v in votes])), winner, backers, score_sum)

    found = index.find(cell)
    heard = found >= 0
    at = found[heard]
    support[heard], agreement[heard] = backers[at], share[at]
    score[heard] = score_sum[at] / (np.maximum(backers[at], 1) * np.float32(_ONE))
    sure = heard & (support >= min_support) & (agreement >= min_agreement)
    label[sure] = winner[found[sure]]
    score[~sure], agreement[~sure] = 0, 0
    return Opinions(label, score, agreement, support)

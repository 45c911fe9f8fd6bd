"""Temporal consolidation: averages class probabilities of points over the cells of a drive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import Float32, Int32, UInt64
from pydantic import Field

from clipsweep.projection import kernels
from clipsweep.projection.frames import NONE, PointLabels
from clipsweep.projection.grid import index_cells


@dataclass(frozen=True)
class ConsolidationConfig:
    """Settings of labels that a student gives: test-time augmentation and mean over time."""

    views: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="test-time augmentation: copies of a sweep, turned by equal steps, every "
            "second one mirrored, whose class probabilities are averaged",
        ),
    ] = 8
    cell_m: Annotated[
        float,
        Field(ge=0.05, le=100, description="side of the cells that probabilities share [m]"),
    ] = 0.4
    cell_weight: Annotated[
        float,
        Field(
            ge=0,
            le=1e6,
            description="weight of the mean over the points in the same cell, from all key frames "
            "in reach; the point's own probabilities weigh 1",
        ),
    ] = 2.0
    teacher_weight: Annotated[
        float,
        Field(
            ge=0,
            le=1e6,
            description="weight of the fused pixel labels beside the student's probabilities, in "
            "label student=FOLDER and in rounds: of a point's label, times its agreement",
        ),
    ] = 0.2
    past_s: Annotated[
        float,
        Field(ge=0, le=1e9, description="earlier key frames share their cells up to this age [s]"),
    ] = 5.0
    future_s: Annotated[
        float,
        Field(
            ge=0,
            le=1e9,
            description="later key frames share their cells up to this time ahead; 0 uses earlier "
            "ones alone, as a car must [s]",
        ),
    ] = 5.0


@dataclass(frozen=True, eq=False, slots=True)
class Consolidated:
    """Class probabilities of the points of a key sweep, before and after their cells' share.

    Attributes:
        probability: weighted mean of a point's own and its cell's.
        cell: mean over the points of all key frames in reach that lie in the same cell.
    """

    probability: Float32[np.ndarray, "n c"]
    cell: Float32[np.ndarray, "n c"]


class CellMean:
    """Running mean of class probabilities in the cells of successive key frames.

    Args:
        keys: packed cell of each point, one array a key frame.
        probabilities: of the same points.
    """

    def __init__(
        self,
        keys: Sequence[UInt64[np.ndarray, " _"]],
        probabilities: Sequence[Float32[np.ndarray, "_ c"]],
    ) -> None:
        index, inverse = index_cells(np.concatenate(keys))
        self._cells: list[Int32[np.ndarray, " _"]] = np.split(
            inverse, np.cumsum([len(own) for own in keys])[:-1]
        )
        self._probabilities = probabilities
        self._sums = np.zeros((len(index), probabilities[0].shape[1]), np.float64)
        self._counts = np.zeros(len(index), np.int64)

    def add(self, number: int) -> None:
        """Counts a key frame in."""
        kernels.add_rows(
            self._probabilities[number], self._cells[number], 1, self._sums, self._counts
        )

    def drop(self, number: int) -> None:
        """Takes a key frame out again."""
        kernels.add_rows(
            self._probabilities[number], self._cells[number], -1, self._sums, self._counts
        )

    def at(self, number: int) -> Float32[np.ndarray, "n c"]:
        """Mean in the cell of each point of a key frame that is counted in."""
        cell = self._cells[number]
        return (self._sums[cell] / self._counts[cell, None]).astype(np.float32)


def add_teacher(
    probability: Float32[np.ndarray, "n c"], teacher: PointLabels, weight: float
) -> Float32[np.ndarray, "n c"]:
    """Mixes class probabilities with the fused labels of the same points.

    ``(p + w a [label]) / (1 + w a)`` with the label's agreement ``a``; a point without label keeps
    its probabilities.
    """
    rows = np.flatnonzero(teacher.label != NONE)
    share = np.zeros(len(probability), np.float32)
    share[rows] = weight * teacher.agreement[rows].astype(np.float32)
    mixed = probability.copy()
    mixed[rows, teacher.label[rows]] += share[rows]
    return mixed / (1 + share[:, None])


def consolidate(
    keys: Sequence[UInt64[np.ndarray, " _"]],
    probabilities: Sequence[Float32[np.ndarray, "_ c"]],
    times_us: Sequence[int],
    wanted: range,
    config: ConsolidationConfig,
) -> Iterator[Consolidated]:
    """Averages class probabilities of successive key frames over time, cell by cell.

    ``q_i = (p_i + w m_i) / (1 + w)`` with ``w = cell_weight``, where ``m_i`` is the mean of ``p``
    over all points in the cell of point i of the key frames from ``past_s`` before to ``future_s``
    after its own. What stands still is seen again in its cell; what moves has left it.

    Args:
        keys: packed cell of each point in a frame that all key frames share, one array a key frame.
        probabilities: class probabilities of the same points.
        times_us: times of the key frames, rising [us].
        wanted: rows of the key frames that are given.
        config: weights and window.
    """
    mean = CellMean(keys, probabilities)
    counted = range(0)
    for number in wanted:
        now_us = times_us[number]
        first = number
        while first and now_us - times_us[first - 1] <= config.past_s * 1e6:
            first -= 1
        last = number
        while last + 1 < len(keys) and times_us[last + 1] - now_us <= config.future_s * 1e6:
            last += 1
        window = range(first, last + 1)
        for other in window:
            if other not in counted:
                mean.add(other)
        for other in counted:
            if other not in window:
                mean.drop(other)
        counted = window
        cell = mean.at(number)
        weight = np.float32(config.cell_weight)
        yield Consolidated((probabilities[number] + weight * cell) / (1 + weight), cell)

"""Scores of a segmentation: one int64 confusion matrix over all points, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from projection.frames import NONE

Absent = Literal["nan", "one", "zero"]
_ABSENT: dict[Absent, float] = {"nan": float("nan"), "one": 1.0, "zero": 0.0}
OTHER = 254
"""A prediction of a class that the table does not have: wrong, but an opinion."""


@dataclass(frozen=True, eq=False, slots=True)
class Confusion:
    """Counts of points: a row for each true class, a column for each predicted one, then one for other, one for none.

    Attributes:
        counts: number of points.
    """

    counts: Int64[np.ndarray, "c c2"]

    @staticmethod
    def empty(classes: int) -> Confusion:
        """Counts of no point."""
        return Confusion(np.zeros((classes, classes + 2), np.int64))

    @staticmethod
    def of(truth: UInt8[np.ndarray, " n"], predicted: UInt8[np.ndarray, " m"], classes: int) -> Confusion:
        """Counts a cloud; points whose truth is 255 are left out.

        Args:
            truth: true class, 255 = ignored.
            predicted: class, 254 = one that the table does not have, 255 = none.
            classes: number of classes.

        Raises:
            ValueError: truth and prediction differ in length, or hold a class beyond the last.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"{len(predicted)} predictions for {len(truth)} points")
        known = truth != NONE
        true, seen = truth[known].astype(np.int64), predicted[known].astype(np.int64)
        if true.size and (true.max() >= classes or seen[seen < OTHER].max(initial=0) >= classes):
            raise ValueError(f"a label lies beyond the last of {classes} classes")
        column = np.where(seen < OTHER, seen, classes + seen - OTHER)
        flat = np.bincount(true * (classes + 2) + column, minlength=classes * (classes + 2))
        return Confusion(flat.reshape(classes, classes + 2))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts)

    def covered(self) -> Confusion:
        """The same without the points that were predicted none."""
        counts = self.counts.copy()
        counts[:, -1] = 0
        return Confusion(counts)

    @property
    def points(self) -> int:
        """Number of points counted."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Share of points that are right; nan without points."""
        right = np.trace(self.counts)
        return float(right / self.points) if self.points else float("nan")

    def iou(self, absent: Absent = "nan") -> Float64[np.ndarray, " c"]:
        """Intersection over union of each class.

        Args:
            absent: value for a class with neither truth nor prediction: ``one`` as the SLidR family counts it, ``zero``
                as SemanticKITTI's evaluator does.
        """
        right = np.diagonal(self.counts).astype(np.float64)
        union = self.counts.sum(1) + self.counts[:, :-2].sum(0) - right
        return np.divide(right, union, out=np.full(len(right), _ABSENT[absent]), where=union > 0)

    def miou(self, absent: Absent = "nan") -> float:
        """Mean IoU over the classes that are not ``nan``; nan when all are."""
        iou = self.iou(absent)
        return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")

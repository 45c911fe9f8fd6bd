"""Segmentation metrics: mIoU and accuracy from a confusion matrix, expected calibration error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, UInt8

Absent = Literal["nan", "one", "zero"]
_ABSENT: dict[Absent, float] = {"nan": float("nan"), "one": 1.0, "zero": 0.0}
OTHER = 254
"""Label of a class that the table of scores does not have.

As a prediction it is wrong, but not missing. As the truth it makes every prediction of a class of
the table a false positive, and is scored in no other way.
"""


@dataclass(frozen=True, eq=False, slots=True)
class Confusion:
    """Confusion matrix of point-wise semantic segmentation.

    A row for each true class, a column for each predicted one, then one for other, one for none.

    Attributes:
        counts: number of points.
        background: number of points by predicted class whose true class is none of the table's:
            false positives, counted in the classes' unions and nowhere else.
    """

    counts: Int64[np.ndarray, "c c2"]
    background: Int64[np.ndarray, " c"]

    @staticmethod
    def empty(classes: int) -> Confusion:
        """Empty confusion matrix: all counts are 0."""
        return Confusion(np.zeros((classes, classes + 2), np.int64), np.zeros(classes, np.int64))

    @staticmethod
    def of(
        truth: UInt8[np.ndarray, " n"], predicted: UInt8[np.ndarray, " m"], classes: int
    ) -> Confusion:
        """Confusion matrix of a point cloud; points whose truth is 255 are left out.

        Args:
            truth: true class, ``OTHER`` = none of the table's, 255 = ignored.
            predicted: class, ``OTHER`` = one that the table does not have, 255 = none.
            classes: number of classes.

        Raises:
            ValueError: truth and prediction differ in length, or hold a class beyond the last.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"{len(predicted)} predictions for {len(truth)} points")
        known = truth < OTHER
        true = truth[known].astype(np.int64)
        seen = predicted[known].astype(np.int64)
        wrong = predicted[(truth == OTHER) & (predicted < OTHER)]
        largest = max(true.max(initial=0), seen[seen < OTHER].max(initial=0), wrong.max(initial=0))
        if (true.size or wrong.size) and largest >= classes:
            raise ValueError(f"a label lies beyond the last of {classes} classes")
        column = np.where(seen < OTHER, seen, classes + seen - OTHER)
        flat = np.bincount(true * (classes + 2) + column, minlength=classes * (classes + 2))
        background = np.bincount(wrong, minlength=classes)
        return Confusion(flat.reshape(classes, classes + 2), background)

    def tree(self) -> dict[str, list]:
        """Counts as JSON-like lists."""
        return {"counts": self.counts.tolist(), "background": self.background.tolist()}

    @staticmethod
    def of_tree(tree: Mapping[str, list]) -> Confusion:
        """Confusion matrix from what ``tree`` gave."""
        return Confusion(np.array(tree["counts"], np.int64), np.array(tree["background"], np.int64))

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.counts + other.counts, self.background + other.background)

    def covered(self) -> Confusion:
        """Confusion matrix of the points with a prediction; those without one are left out."""
        counts = self.counts.copy()
        counts[:, -1] = 0
        return Confusion(counts, self.background)

    @property
    def points(self) -> int:
        """Number of points with ground truth."""
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Overall accuracy: share of the labelled points that are right; nan without points."""
        right = np.trace(self.counts)
        return float(right / self.points) if self.points else float("nan")

    def iou(self, absent: Absent = "nan") -> Float64[np.ndarray, " c"]:
        """Intersection over union of each class.

        Args:
            absent: value for a class with neither truth nor prediction: ``one`` as the SLidR family
                counts it, ``zero`` as SemanticKITTI's evaluator does.
        """
        right = np.diagonal(self.counts).astype(np.float64)
        union = self.counts.sum(1) + self.counts[:, :-2].sum(0) + self.background - right
        return np.divide(right, union, out=np.full(len(right), _ABSENT[absent]), where=union > 0)

    def miou(self, absent: Absent = "nan") -> float:
        """Mean IoU over the classes that are not ``nan``; nan when all are."""
        iou = self.iou(absent)
        return float(np.nanmean(iou)) if not np.isnan(iou).all() else float("nan")

    def mistakes(self, classes: int = 3) -> list[list[tuple[int, float]]]:
        """Most frequent wrong predictions of each true class, as (column, share of its points).

        Args:
            classes: how many of each class at most; those below 0.5 % of its points are left out.
        """
        found: list[list[tuple[int, float]]] = []
        for own, row in enumerate(self.counts):
            share = row / max(1, row.sum())
            share[own] = 0
            most = np.argsort(-share, kind="stable")[:classes]
            found.append([(int(column), float(share[column])) for column in most])
        return [[each for each in of_class if each[1] >= 0.005] for of_class in found]


_BINS = 20


@dataclass(frozen=True, eq=False, slots=True)
class Calibration:
    """Reliability diagram of confidences: predictions in equal bins of confidence over 0..1.

    Attributes:
        count: number of predictions.
        right: number of right ones.
        confidence: sum of the confidences.
    """

    count: Int64[np.ndarray, " bins"]
    right: Int64[np.ndarray, " bins"]
    confidence: Float64[np.ndarray, " bins"]

    @staticmethod
    def empty() -> Calibration:
        """Reliability diagram without predictions."""
        none = np.zeros(_BINS, np.int64)
        return Calibration(none, none, np.zeros(_BINS))

    @staticmethod
    def of(confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> Calibration:
        """Reliability diagram of predictions with a confidence in 0..1 each."""
        place = np.clip((confidence * _BINS).astype(np.int64), 0, _BINS - 1)
        return Calibration(
            np.bincount(place, minlength=_BINS),
            np.bincount(place[right], minlength=_BINS),
            np.bincount(place, confidence.astype(np.float64), _BINS),
        )

    def __add__(self, other: Calibration) -> Calibration:
        return Calibration(
            self.count + other.count, self.right + other.right, self.confidence + other.confidence
        )

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017, equation 3); nan without predictions."""
        if not self.count.any():
            return float("nan")
        return float(np.abs(self.right - self.confidence).sum() / self.count.sum())

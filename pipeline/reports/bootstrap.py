"""Bootstrap over scenes: confidence intervals of IoU, and of differences in mIoU (paired)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from clipsweep.distill.metrics import Confusion

_DRAWS = 2000
_TAILS = (2.5, 97.5)
"""Percentiles that bound the 95 % interval."""


@dataclass(frozen=True, slots=True)
class Gain:
    """Difference in mIoU of two methods on the same scenes, mean over their seeds.

    Attributes:
        over: name of the other method.
        miou: mIoU of the method minus that of the other.
        low: lower bound of the 95 % interval.
        high: its upper bound.
        scenes: number of scenes that were drawn from.
    """

    over: str
    miou: float
    low: float
    high: float
    scenes: int


def paired_gain(
    ours: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], over: str
) -> Gain:
    """Paired bootstrap over scenes of the difference in mIoU between two methods.

    Scenes are drawn with replacement, the same for both methods and all seeds; the mIoU of a draw
    is that of the summed confusion matrices, averaged over the seeds (percentile interval, Efron
    and Tibshirani 1993, chapter 13).

    Args:
        ours: ``scores.json`` of the method, one a seed.
        others: those of the other method, on the same scenes.
        over: the other method's name.

    Raises:
        ValueError: the scenes are not the same.
    """
    scenes = list(ours[0]["scenes"])
    if any(list(tree["scenes"]) != scenes for tree in (*ours, *others)):
        raise ValueError("the methods were not scored on the same scenes")
    draws = _draws(len(scenes))
    whole = np.ones((1, len(scenes)), np.int64)
    differences = _miou(ours, scenes, draws) - _miou(others, scenes, draws)
    low, high = np.percentile(differences, _TAILS)
    gain = (_miou(ours, scenes, whole) - _miou(others, scenes, whole)).item()
    return Gain(over, gain, float(low), float(high), len(scenes))


def iou_intervals(scenes: Sequence[Confusion]) -> Float64[np.ndarray, "c1 2"]:
    """Bootstrap over scenes of the IoU of each class, then of their mean: 95 % intervals.

    Draws without a point of a class, true or predicted, do not count for it.

    Args:
        scenes: confusion matrix of each scene.

    Returns:
        Lower and upper bound; nan for a class that is in no scene.
    """
    return _bounds(_drawn_iou(scenes))


def iou_gains(
    ours: Sequence[Confusion], others: Sequence[Confusion]
) -> Float64[np.ndarray, "c1 3"]:
    """Paired bootstrap over scenes of the difference in IoU of each class, then in mIoU.

    Args:
        ours: confusion matrices of a method, one a scene.
        others: those of the other method, on the same scenes.

    Returns:
        Difference, lower and upper bound of its 95 % interval.
    """
    sums = [sum(each, Confusion.empty(len(each[0].counts))) for each in (ours, others)]
    first, second = ([*each.iou(), each.miou()] for each in sums)
    bounds = _bounds(_drawn_iou(ours) - _drawn_iou(others))
    return np.column_stack([np.subtract(first, second), bounds])


def _draws(scenes: int) -> Int64[np.ndarray, "draws scenes"]:
    """How often each scene is in each bootstrap sample."""
    random = np.random.default_rng(0)
    return random.multinomial(scenes, np.full(scenes, 1 / scenes), _DRAWS)


def _drawn_iou(scenes: Sequence[Confusion]) -> Float64[np.ndarray, "draws c1"]:
    """IoU of each class, then mIoU, of each bootstrap sample."""
    drawn = _samples(scenes, _draws(len(scenes)))
    return np.array([[*each.iou(), each.miou()] for each in drawn])


def _bounds(values: Float64[np.ndarray, "draws c1"]) -> Float64[np.ndarray, "c1 2"]:
    """95 % interval of each column; nan for a column of nan."""
    bounds = np.full((values.shape[1], 2), np.nan)
    for column, of_class in enumerate(values.T):
        known = of_class[~np.isnan(of_class)]
        if known.size:
            bounds[column] = np.percentile(known, _TAILS)
    return bounds


def _samples(scenes: Sequence[Confusion], draws: np.ndarray) -> list[Confusion]:
    """Summed confusion matrix of each draw."""
    counts = np.tensordot(draws, np.stack([each.counts for each in scenes]), 1)
    background = draws @ np.stack([each.background for each in scenes])
    return [Confusion(*sums) for sums in zip(counts, background, strict=True)]


def _miou(
    trees: Sequence[Mapping[str, Any]], scenes: Sequence[str], draws: np.ndarray
) -> np.ndarray:
    """Mean over seeds of the mIoU of each draw; a row of ``draws`` says how often a scene is in."""
    of_seed = []
    for tree in trees:
        each = [Confusion.of_tree(tree["scenes"][scene]) for scene in scenes]
        of_seed.append([sample.miou() for sample in _samples(each, draws)])
    return np.mean(of_seed, axis=0)

"""Paired bootstrap over scenes: confidence interval of a difference in mIoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipsweep.distill.metrics import Confusion

_DRAWS = 2000
_LEVEL = 0.95


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
    random = np.random.default_rng(0)
    draws = random.multinomial(len(scenes), np.full(len(scenes), 1 / len(scenes)), _DRAWS)
    whole = np.ones((1, len(scenes)), np.int64)
    differences = _miou(ours, scenes, draws) - _miou(others, scenes, draws)
    tail = 100 * (1 - _LEVEL) / 2
    low, high = np.percentile(differences, [tail, 100 - tail])
    gain = (_miou(ours, scenes, whole) - _miou(others, scenes, whole)).item()
    return Gain(over, gain, float(low), float(high), len(scenes))


def _miou(
    trees: Sequence[Mapping[str, Any]], scenes: Sequence[str], draws: np.ndarray
) -> np.ndarray:
    """Mean over seeds of the mIoU of each draw; a row of ``draws`` says how often a scene is in."""
    of_seed = []
    for tree in trees:
        each = [Confusion.of_tree(tree["scenes"][scene]) for scene in scenes]
        counts = np.tensordot(draws, np.stack([c.counts for c in each]), 1)
        background = draws @ np.stack([c.background for c in each])
        of_seed.append([Confusion(*sums).miou() for sums in zip(counts, background, strict=True)])
    return np.mean(of_seed, axis=0)

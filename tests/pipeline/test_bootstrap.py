"""Paired bootstrap over scenes."""

from __future__ import annotations

import numpy as np
import pytest

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.reports.bootstrap import paired_gain

CLASSES = 4


def scored(seed: int, right: float, scenes: int = 30) -> dict:
    """Scores of a method that is right with a probability, on scenes of 200 points."""
    truth = np.random.default_rng(0).integers(0, CLASSES, (scenes, 200)).astype(np.uint8)
    random = np.random.default_rng(seed)
    other = random.integers(0, CLASSES, truth.shape).astype(np.uint8)
    predicted = np.where(random.random(truth.shape) < right, truth, other)
    pairs = zip(truth, predicted, strict=True)
    return {
        "scenes": {
            f"scene-{number}": Confusion.of(*pair, CLASSES).tree()
            for number, pair in enumerate(pairs)
        }
    }


def total(tree: dict) -> float:
    counts = (Confusion.of_tree(each) for each in tree["scenes"].values())
    return sum(counts, Confusion.empty(CLASSES)).miou()


def test_a_gain_has_an_interval_around_it() -> None:
    ours = [scored(seed, 0.8) for seed in (1, 2)]
    others = [scored(seed, 0.7) for seed in (3, 4)]
    gain = paired_gain(ours, others, "others")
    expected = np.mean([total(t) for t in ours]) - np.mean([total(t) for t in others])
    assert gain.miou == pytest.approx(expected)
    assert 0 < gain.low < gain.miou < gain.high < 0.25
    back = paired_gain(others, ours, "ours")
    assert back.low == pytest.approx(-gain.high)


def test_the_same_method_gains_nothing() -> None:
    same = [scored(1, 0.8)]
    gain = paired_gain(same, same, "itself")
    assert (gain.miou, gain.low, gain.high) == (0, 0, 0)


def test_chance_is_within_the_interval() -> None:
    gains = [paired_gain([scored(2 * n, 0.75)], [scored(2 * n + 1, 0.75)], "") for n in range(20)]
    assert sum(gain.low <= 0 <= gain.high for gain in gains) >= 16


def test_other_scenes_are_refused() -> None:
    with pytest.raises(ValueError, match="same scenes"):
        paired_gain([scored(1, 0.8)], [scored(1, 0.8, scenes=29)], "others")

"""Bootstrap over scenes."""

from __future__ import annotations

import numpy as np
import pytest

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.reports.bootstrap import iou_gains, iou_intervals, paired_gain

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


def confusions(tree: dict) -> list[Confusion]:
    return [Confusion.of_tree(each) for each in tree["scenes"].values()]


def test_intervals_of_classes_hold_their_iou() -> None:
    scenes = confusions(scored(1, 0.8))
    whole = sum(scenes, Confusion.empty(CLASSES))
    bounds = iou_intervals(scenes)
    values = [*whole.iou(), whole.miou()]
    assert bounds.shape == (CLASSES + 1, 2)
    assert (bounds[:, 0] < values).all()
    assert (values < bounds[:, 1]).all()
    assert np.ptp(bounds[-1]) < np.ptp(bounds[:-1], 1).min()  # the mean is known best


def test_a_class_without_points_has_no_interval() -> None:
    counts = Confusion.of(np.zeros(9, np.uint8), np.zeros(9, np.uint8), 2)
    bounds = iou_intervals([counts, counts])
    assert bounds[0].tolist() == [1, 1]
    assert np.isnan(bounds[1]).all()


def test_gains_of_classes_are_paired() -> None:
    ours = confusions(scored(1, 0.8))
    others = confusions(scored(2, 0.6))
    gains = iou_gains(ours, others)
    expected = paired_gain([scored(1, 0.8)], [scored(2, 0.6)], "")
    assert gains[-1] == pytest.approx([expected.miou, expected.low, expected.high])
    assert (gains[:, 1] <= gains[:, 0]).all()
    assert (gains[:, 0] <= gains[:, 2]).all()
    assert iou_gains(ours, ours).tolist() == [[0, 0, 0]] * (CLASSES + 1)

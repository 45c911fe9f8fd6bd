"""Scores against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from clipsweep.distill.metrics import OTHER, Calibration, Confusion

TRUTH = np.array([0, 0, 0, 1, 1, 2, 255, 255], np.uint8)
PREDICTED = np.array([0, 0, 1, 1, 255, OTHER, 0, 255], np.uint8)


def counted(truth: np.ndarray, predicted: np.ndarray, classes: int) -> list[float]:
    """IoU by sets, point by point."""
    points = [(t, s) for t, s in zip(truth.tolist(), predicted.tolist(), strict=True) if t != 255]
    result = []
    for c in range(classes):
        both = sum(t == c and s == c for t, s in points)
        either = sum(t == c or s == c for t, s in points)
        result.append(both / either if either else float("nan"))
    return result


def test_iou_equals_counting() -> None:
    random = np.random.default_rng(0)
    truth = random.choice([0, 1, 2, 3, 255], 1000).astype(np.uint8)
    predicted = random.choice([0, 1, 2, 3, OTHER, 255], 1000).astype(np.uint8)
    np.testing.assert_allclose(
        Confusion.of(truth, predicted, 4).iou(), counted(truth, predicted, 4)
    )


def test_ignored_truth_is_left_out_and_none_is_wrong() -> None:
    scores = Confusion.of(TRUTH, PREDICTED, 3)
    assert scores.points == 6
    assert scores.accuracy == pytest.approx(3 / 6)
    assert scores.covered().points == 5
    assert scores.covered().accuracy == pytest.approx(3 / 5)


def test_absent_class_policies() -> None:
    scores = Confusion.of(TRUTH, PREDICTED, 4)
    assert np.isnan(scores.iou()[3])
    assert scores.iou("one")[3] == 1
    assert scores.miou("one") == pytest.approx((3 * scores.miou() + 1) / 4)
    assert scores.miou("zero") == pytest.approx(3 * scores.miou() / 4)
    assert np.isnan(Confusion.empty(2).miou())


def test_sums_over_frames() -> None:
    whole = Confusion.of(TRUTH, PREDICTED, 3)
    parts = Confusion.of(TRUTH[:4], PREDICTED[:4], 3) + Confusion.of(TRUTH[4:], PREDICTED[4:], 3)
    assert (whole.counts == parts.counts).all()
    assert whole.counts.dtype == np.int64


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions for 3"):
        Confusion.of(np.zeros(3, np.uint8), np.zeros(2, np.uint8), 3)
    with pytest.raises(ValueError, match="beyond the last"):
        Confusion.of(np.zeros(1, np.uint8), np.full(1, 3, np.uint8), 3)


def test_truth_of_no_class_counts_against_what_is_predicted_and_nowhere_else() -> None:
    random = np.random.default_rng(1)
    truth = random.choice([0, 1, 2, OTHER, 255], 1000).astype(np.uint8)
    predicted = random.choice([0, 1, 2, OTHER, 255], 1000).astype(np.uint8)
    scores = Confusion.of(truth, predicted, 3)
    np.testing.assert_allclose(scores.iou(), counted(truth, predicted, 3))
    background = np.bincount(predicted[(truth == OTHER) & (predicted < OTHER)], minlength=3)
    np.testing.assert_array_equal(scores.background, background)
    assert scores.points == (truth < OTHER).sum()
    assert scores.accuracy == ((truth == predicted) & (truth < OTHER)).sum() / scores.points
    assert ((scores + scores).covered().background == 2 * scores.background).all()
    with pytest.raises(ValueError, match="beyond the last"):
        Confusion.of(np.full(1, OTHER, np.uint8), np.full(1, 3, np.uint8), 3)


def test_mistakes_are_the_largest_of_each_row() -> None:
    counts = np.array([[90, 7, 3, 0, 0], [0, 0, 0, 0, 0], [996, 4, 500, 300, 200]])
    found = Confusion(counts, np.zeros(3, np.int64)).mistakes(2)
    assert found == [[(1, 0.07), (2, 0.03)], [], [(0, 0.498), (3, 0.15)]]


def test_the_calibration_error_equals_a_loop_over_bins() -> None:
    random = np.random.default_rng(0)
    confidence = np.append(random.random(5000), [0.0, 1.0])
    right = random.random(5002) < confidence**2
    expected = 0.0
    for low in np.arange(20) / 20:
        inside = (confidence >= low) & ((confidence < low + 0.05) | (low == 0.95))
        gap = abs(right[inside].mean() - confidence[inside].mean())
        expected += inside.sum() / len(confidence) * gap
    parts = [slice(0, 100), slice(100, None)]
    found = sum((Calibration.of(confidence[p], right[p]) for p in parts), Calibration.empty())
    assert found.error == pytest.approx(expected)
    assert expected > 0.1
    assert np.isnan(Calibration.empty().error)

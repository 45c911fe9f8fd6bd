"""Mean of class probabilities over time, against a plain loop."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clipsweep.projection.consolidation import ConsolidationConfig, add_teacher, consolidate
from clipsweep.projection.frames import NONE, PointLabels
from clipsweep.projection.grid import cell_keys

CLASSES = 3
CONFIG = ConsolidationConfig(cell_m=1.0, cell_weight=2.0, past_s=1.0, future_s=0.6)


def drive(seed: int = 0, frames: int = 6) -> tuple[list, list, list[int]]:
    """Cells and probabilities of the points of key frames half a second apart."""
    random = np.random.default_rng(seed)
    clouds = [random.uniform(-2, 2, (50, 3)).astype(np.float32) for _ in range(frames)]
    keys = [cell_keys(xyz, CONFIG.cell_m) for xyz in clouds]
    probabilities = [random.dirichlet(np.ones(CLASSES), 50).astype(np.float32) for _ in keys]
    return keys, probabilities, [500_000 * number for number in range(frames)]


def plain(keys: list, probabilities: list, times_us: list[int], number: int, config) -> np.ndarray:
    """Consolidated probabilities of a key frame, point by point."""
    here = times_us[number]
    window = [
        other
        for other, time_us in enumerate(times_us)
        if here - config.past_s * 1e6 <= time_us <= here + config.future_s * 1e6
    ]
    found = []
    for key, own in zip(keys[number], probabilities[number], strict=True):
        shared = [
            p
            for other in window
            for k, p in zip(keys[other], probabilities[other], strict=True)
            if k == key
        ]
        mean = np.mean(shared, axis=0)
        found.append((own + config.cell_weight * mean) / (1 + config.cell_weight))
    return np.array(found)


@pytest.mark.parametrize("wanted", [range(6), range(2, 5)])
@pytest.mark.parametrize("future_s", [0.6, 0.0, 60.0])
def test_it_is_the_mean_over_the_points_of_the_cell(wanted: range, future_s: float) -> None:
    config = dataclasses.replace(CONFIG, future_s=future_s)
    keys, probabilities, times_us = drive()
    found = list(consolidate(keys, probabilities, times_us, wanted, config))
    assert len(found) == len(wanted)
    for number, labels in zip(wanted, found, strict=True):
        expected = plain(keys, probabilities, times_us, number, config)
        np.testing.assert_allclose(labels.probability, expected, atol=1e-6)
        np.testing.assert_allclose(labels.probability.sum(1), 1, atol=1e-5)


def test_without_a_future_later_frames_change_nothing() -> None:
    config = dataclasses.replace(CONFIG, future_s=0.0)
    keys, probabilities, times_us = drive()
    before = list(consolidate(keys, probabilities, times_us, range(3), config))
    probabilities[3:] = [own[::-1] for own in probabilities[3:]]
    after = list(consolidate(keys, probabilities, times_us, range(3), config))
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one.probability, other.probability)
    ahead = list(consolidate(keys, probabilities, times_us, range(3), CONFIG))
    assert not np.allclose(ahead[2].probability, after[2].probability)


def test_a_teachers_label_weighs_by_its_agreement() -> None:
    probability = np.array([[0.6, 0.4, 0], [0.6, 0.4, 0], [0.6, 0.4, 0]], np.float32)
    teacher = PointLabels(
        np.array([1, 1, NONE], np.uint8),
        np.ones(3, np.float16),
        np.array([1, 0.5, 0], np.float16),
    )
    mixed = add_teacher(probability, teacher, 0.3)
    np.testing.assert_allclose(mixed[0], np.array([0.6, 0.7, 0]) / 1.3, atol=1e-3)
    np.testing.assert_allclose(mixed[1], np.array([0.6, 0.55, 0]) / 1.15, atol=1e-3)
    np.testing.assert_array_equal(mixed[2], probability[2])
    np.testing.assert_allclose(mixed.sum(1), 1, atol=1e-3)

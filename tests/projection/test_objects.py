"""One class for each vehicle."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from clipsweep.projection.objects import unify_vehicles
from clipsweep.projection.votes import FusedLabels
from tests.projection import twins

ROAD = 0
CAR = 1
BUS = 2
VEHICLE = np.array([False, True, True, False])


def fused(label):
    n = len(label)
    random = np.random.default_rng(n)
    return FusedLabels(
        np.asarray(label, np.uint8),
        random.uniform(0.3, 1, n).astype(np.float32),
        random.uniform(0.3, 1, n).astype(np.float32),
        np.ones(n, np.int32),
    )


def line(start_m, end_m, step_m=0.2):
    x = np.arange(start_m, end_m, step_m)
    return np.column_stack([x, np.zeros(len(x)), np.ones(len(x))]).astype(np.float32)


def twin(xyz, given, vehicle):
    """Floods each object from its cells and counts the labels of its points."""
    label = given.label.copy()
    score = given.score.copy()
    agreement = given.agreement.copy()
    rows = np.flatnonzero([c < len(vehicle) and vehicle[c] for c in given.label])
    cells = np.floor(xyz[rows].astype(np.float64) / 0.3).astype(int)
    cells = np.column_stack([np.zeros(len(rows), int), cells])
    for cluster in twins.clusters(cells) if len(rows) else []:
        own = rows[sorted(cluster)]
        counts = Counter(given.label[own].tolist())
        most = min(counts, key=lambda c: (-counts[c], c))
        extent = np.ptp(xyz[own, :2].astype(np.float64), axis=0)
        if np.hypot(*extent) > 20:
            continue
        for row in own:
            if given.label[row] != most:
                label[row] = most
                score[row] = given.score[own][given.label[own] == most].mean()
                agreement[row] = counts[most] / len(own)
    return label, score, agreement


@pytest.mark.parametrize("seed", range(5))
def test_each_vehicle_has_the_class_of_most_of_its_points(seed):
    random = np.random.default_rng(seed)
    centre = random.uniform(-15, 15, (12, 3)) * [1, 1, 0.1]
    xyz = centre[random.integers(0, 12, 500)] + random.normal(size=(500, 3)) * 0.6
    xyz = xyz.astype(np.float32)
    given = fused(random.choice([ROAD, CAR, BUS, 3, 255], 500, p=[0.1, 0.3, 0.4, 0.1, 0.1]))
    found = unify_vehicles(xyz, given, VEHICLE)
    label, score, agreement = twin(xyz, given, VEHICLE)
    np.testing.assert_array_equal(found.label, label)
    np.testing.assert_allclose(found.score, score, rtol=1e-5)
    np.testing.assert_allclose(found.agreement, agreement, rtol=1e-5)
    assert (found.label != given.label).sum() > 20
    np.testing.assert_array_equal(found.support, given.support)


def test_the_front_of_a_bus_is_no_car():
    xyz = np.concatenate([line(0, 9), line(9, 12), line(20, 24), line(0, 3) - [0, 0, 1]])
    xyz = xyz.astype(np.float32)
    label = [BUS] * 45 + [CAR] * 15 + [CAR] * 20 + [ROAD] * 15
    found = unify_vehicles(xyz, fused(label), VEHICLE).label
    assert found.tolist() == [BUS] * 60 + [CAR] * 20 + [ROAD] * 15


def test_a_row_of_vehicles_keeps_its_labels():
    """What a car has left along its way in five seconds is no object either."""
    xyz = line(0, 21)
    label = [BUS] * 60 + [CAR] * 45
    assert unify_vehicles(xyz, fused(label), VEHICLE).label.tolist() == label


def test_no_vehicles_and_no_points():
    nothing = np.empty((0, 3), np.float32)
    assert len(unify_vehicles(nothing, fused([]), VEHICLE).label) == 0
    road = fused([ROAD] * 5 + [255])
    assert unify_vehicles(line(0, 1.2), road, VEHICLE) is road
    cars = fused([CAR, BUS, BUS])
    assert unify_vehicles(line(0, 0.6), cars, np.zeros(4, np.bool_)) is cars

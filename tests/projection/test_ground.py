"""The ground under a drive, and what stands on it."""

from __future__ import annotations

import numpy as np
import pytest

from projection.ground import survey
from projection.pose import Pose
from tests.projection.scenes import pose, shift

SLOPE = 0.08


def road(random, n=40_000):
    """A road that climbs 8 % along x, with 2 cm of noise."""
    xy = random.uniform(-30, 30, (n, 2))
    return np.column_stack([xy, SLOPE * xy[:, 0] + random.normal(size=n) * 0.02])


def box(random, low, high, n):
    """The faces of a box whose floor lies on the road."""
    xyz = random.uniform(low, high, (n, 3))
    face = random.integers(0, 5, n)
    for axis in (0, 1):
        xyz[face == 2 * axis, axis], xyz[face == 2 * axis + 1, axis] = low[axis], high[axis]
    xyz[face == 4, 2] = high[2]
    xyz[:, 2] += SLOPE * xyz[:, 0]
    return xyz


@pytest.fixture(scope="module")
def site():
    """A road, a car, a house, a tree over a second car, and returns mirrored under the road."""
    random = np.random.default_rng(0)
    parts = [
        road(random),
        box(random, (5, 2, 0), (9, 4, 1.5), 4000),
        box(random, (-5, 10, 0), (5, 20, 8), 12_000),
        box(random, (-9, -4, 0), (-5, -2, 1.5), 4000),
        box(random, (-9, -4, 3.0), (-5, -2, 6.0), 4000),
        np.column_stack([random.uniform(-0.3, 0.3, (60, 2)) + 12, random.uniform(-4, -1, 60)]),
    ]
    xyz = np.concatenate(parts).astype(np.float32)
    halves = [(xyz[::2], Pose.identity()), (xyz[1::2], Pose.identity())]
    return survey(Pose.identity(), [Pose.identity()] * 2, lambda: iter(halves), len(xyz))


def test_the_road_is_the_ground_also_under_cars_and_beside_mirrored_returns(site):
    xyz = road(np.random.default_rng(1), 2000)
    height = site.height(xyz.astype(np.float32), Pose.identity())
    inside = (np.abs(xyz[:, :2]) < 29).all(axis=1)
    in_house = (np.abs(xyz[:, 0]) < 6) & (xyz[:, 1] > 9) & (xyz[:, 1] < 21)
    assert np.abs(height[inside & ~in_house]).max() < 0.3
    assert np.percentile(np.abs(height[inside & ~in_house]), 95) < 0.08


def test_things_are_as_high_as_what_they_are_part_of(site):
    xyz = np.array([[5, 3, 0.7], [0, 10, 0.5], [-7, -4, 1.0], [-7, -4, 5.0], [20, 0, 0.0]], np.float32)
    xyz[:, 2] += np.float32(SLOPE) * xyz[:, 0]
    height = site.height(xyz, Pose.identity())
    np.testing.assert_allclose(height, [0.7, 0.5, 1, 5, 0], atol=0.15)
    np.testing.assert_allclose(site.top(xyz, height, Pose.identity()), [1.5, 8, 1.5, 6, 0], atol=0.3)


def test_off_the_map_nothing_is_known(site):
    far = np.array([[900, 0, 0], [0, -900, 0], [np.nan, 0, 0]], np.float32)
    height = site.height(far, Pose.identity())
    assert np.isnan(height).all()
    assert np.isnan(site.top(far, height, Pose.identity())).all()


def test_sweeps_may_lie_anywhere():
    """The map does not depend on the frames that the sweeps come in."""
    random = np.random.default_rng(0)
    xyz, site_from_lidar = road(random), pose(random, 3.0)
    moved = site_from_lidar.inverse().apply(xyz).astype(np.float32)
    places = [shift(0), shift(0)]
    plain = survey(shift(0), places, lambda: iter([(xyz.astype(np.float32), shift(0))]), len(xyz))
    turned = survey(shift(0), places, lambda: iter([(moved, site_from_lidar)]), len(xyz))
    probe = np.float32([[3, 4, 1], [-8, 2, 0]])
    np.testing.assert_allclose(plain.height(probe, shift(0)), turned.height(probe, shift(0)), atol=0.03)


def test_many_points_are_thinned(monkeypatch):
    random = np.random.default_rng(0)
    xyz = road(random).astype(np.float32)
    monkeypatch.setattr("projection.ground._MOST_POINTS", 15_000)
    site = survey(shift(0), [shift(0)], lambda: iter([(xyz, shift(0))]), len(xyz))
    np.testing.assert_allclose(site.height(np.float32([[3, 4, 1]]), shift(0)), 1 - SLOPE * 3, atol=0.1)


def test_a_drive_without_points_has_no_ground():
    site = survey(shift(0), [shift(0)], lambda: iter([(np.empty((0, 3), np.float32), shift(0))]), 0)
    assert np.isnan(site.height(np.float32([[1, 2, 3]]), shift(0))).all()

"""The ground under a drive, and what stands on it."""

from __future__ import annotations

import numpy as np
import pytest

from clipsweep.projection.ground import map_ground
from clipsweep.projection.pose import Pose
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
        xyz[face == 2 * axis, axis] = low[axis]
        xyz[face == 2 * axis + 1, axis] = high[axis]
    xyz[face == 4, 2] = high[2]
    xyz[:, 2] += SLOPE * xyz[:, 0]
    return xyz


def street(random):
    """A road, a car, a house, a tree over a second car."""
    return np.concatenate(
        [
            road(random),
            box(random, (5, 2, 0), (9, 4, 1.5), 4000),
            box(random, (-5, 10, 0), (5, 20, 8), 12_000),
            box(random, (-9, -4, 0), (-5, -2, 1.5), 4000),
            box(random, (-9, -4, 3.0), (-5, -2, 6.0), 4000),
        ]
    ).astype(np.float32)


def seen_from(height_m, xyz):
    """The points in the frame of a sensor above the origin."""
    return (xyz - np.float32([0, 0, height_m])).astype(np.float32)


def heights(ground, xyz):
    return ground.heights(np.asarray(xyz, np.float32), Pose.identity())


@pytest.fixture(scope="module")
def ground():
    xyz = street(np.random.default_rng(0))
    return map_ground([seen_from(1.8, xyz[::2]), seen_from(1.8, xyz[1::2])], [shift(0, 0, 1.8)] * 2)


def on_open_road(random):
    xyz = road(random, 2000)
    in_house = (np.abs(xyz[:, 0]) < 6) & (xyz[:, 1] > 9) & (xyz[:, 1] < 21)
    return xyz[(np.abs(xyz[:, :2]) < 29).all(axis=1) & ~in_house]


def test_the_road_is_the_ground_also_under_cars(ground):
    found = heights(ground, on_open_road(np.random.default_rng(1)))
    assert np.abs(found.height).max() < 0.3
    assert np.percentile(np.abs(found.height), 95) < 0.08
    assert found.known.mean() > 0.97


def test_returns_from_below_the_road_do_not_pull_it_down():
    """Mirror images of a house in a wet road: a whole floor of points, 4 m down beside the road."""
    random = np.random.default_rng(2)
    mirrored = np.column_stack(
        [random.uniform(-5, 5, 8000), random.uniform(10, 20, 8000), random.uniform(-8, -4, 8000)]
    )
    loose = random.uniform([-20, -20, -5], [20, 20, -1], (300, 3))
    xyz = np.concatenate([street(random), mirrored, loose]).astype(np.float32)
    wet = map_ground([seen_from(1.8, xyz)], [shift(0, 0, 1.8)])
    found = heights(wet, on_open_road(random))
    assert np.percentile(np.abs(found.height), 99) < 0.3
    assert np.percentile(np.abs(found.height), 95) < 0.08


def test_a_bridge_is_the_ground_of_those_who_drive_on_it():
    """Road 6 m below is seen on both sides of a bridge of 12 m.

    It is far under the ground, not the ground.
    """
    random = np.random.default_rng(3)
    deck = np.column_stack(
        [random.uniform(-30, 30, 20_000), random.uniform(-6, 6, 20_000), np.zeros(20_000)]
    )
    below = np.column_stack([random.uniform(-30, 30, (30_000, 2)), np.full(30_000, -6.0)])
    below = below[np.abs(below[:, 1]) > 8]
    over = map_ground([seen_from(1.8, np.concatenate([deck, below]))], [shift(0, 0, 1.8)])
    assert np.abs(heights(over, deck[np.abs(deck[:, 1]) < 5.5]).height).max() < 0.1
    assert not heights(over, below).known.any()


def test_objects_are_as_high_as_their_cluster(ground):
    xyz = np.array(
        [[5, 3, 0.7], [0, 10, 0.5], [-7, -4, 1.0], [-7, -4, 5.0], [20, 0, 0.0]], np.float32
    )
    xyz[:, 2] += np.float32(SLOPE) * xyz[:, 0]
    found = heights(ground, xyz)
    np.testing.assert_allclose(found.height, [0.7, 0.5, 1, 5, 0], atol=0.15)
    np.testing.assert_allclose(found.top, [1.5, 8, 1.5, 6, 0], atol=0.3)


def test_off_the_map_nothing_is_known(ground):
    found = heights(ground, [[900, 0, 0], [0, -900, 0], [np.nan, 0, 0]])
    assert np.isnan(found.height).all()
    assert np.isnan(found.top).all()
    assert not found.known.any()


def test_far_from_any_ground_nothing_is_sure(ground):
    """Between the road's end and the map's end there is a height, but no ground was seen."""
    found = heights(ground, [[50, 0, 4.0], [60, 10, 5.0]])
    assert np.isfinite(found.height).all()
    assert not found.known.any()


def test_sweeps_may_lie_anywhere():
    """The map does not depend on the frames that the sweeps come in."""
    random = np.random.default_rng(0)
    xyz = road(random)
    turned = pose(random, 3.0)
    at = shift(0, 0, 1.8) @ Pose(turned.rotation, np.zeros(3))
    moved = at.inverse().apply(xyz).astype(np.float32)
    plain = map_ground([seen_from(1.8, xyz)], [shift(0, 0, 1.8)])
    other = map_ground([moved], [at])
    probe = [[3, 4, 1], [-8, 2, 0]]
    np.testing.assert_allclose(
        heights(plain, probe).height, heights(other, probe).height, atol=0.03
    )


def test_a_drive_without_points_has_no_ground():
    empty = map_ground([np.empty((0, 3), np.float32)], [shift(0)])
    assert np.isnan(heights(empty, [[1, 2, 3]]).height).all()

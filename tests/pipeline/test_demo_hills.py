"""The embedded world's hills.

Rays against dense marching, objects on the ground, errors of poses.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipsweep.pipeline.demo.ground import (
    DRIVEABLE,
    KERB_M,
    STEP_M,
    TERRAIN,
    Ground,
    Hills,
    draw_hills,
)
from clipsweep.pipeline.demo.parts import BOX, rotation
from clipsweep.pipeline.demo.ray_kernels import hit_ground, slope_at
from clipsweep.pipeline.demo.rig import draw_flat_poses, pose
from clipsweep.pipeline.demo.world import World, build_world

HILLS_M = 4.0


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(0, 1, 2.0, HILLS_M)


def surface(ground: Ground, xyz: np.ndarray) -> np.ndarray:
    """Twin: label of the ground at places."""
    rows, columns = ground.surface.shape
    row = np.floor((xyz[:, 1] - ground.corner_m[1]) / STEP_M).astype(int).clip(0, rows - 1)
    column = np.floor((xyz[:, 0] - ground.corner_m[0]) / STEP_M).astype(int).clip(0, columns - 1)
    return ground.surface[row, column]


def march(ground: Ground, start: np.ndarray, way: np.ndarray, far_m: float) -> tuple[float, int]:
    """Twin: the first of dense steps along a ray that is below the ground or a kerb."""
    steps = np.arange(0.0, far_m, 2e-3)
    xyz = start + steps[:, None] * way
    label = surface(ground, xyz)
    top = ground.hills.height_m(xyz[:, 0]) + KERB_M * (label != DRIVEABLE)
    below = xyz[:, 2] < top
    first = int(below.argmax())
    return (float(steps[first]), int(label[first])) if below.any() else (math.inf, 0)


def draw_ray(
    rng: np.random.Generator, ground: Ground, turn_rad: float, low_m: float = 1.4
) -> tuple[np.ndarray, np.ndarray]:
    """From `low_m` to a LiDAR's height above the road, near level, along the street or not."""
    x = float(rng.uniform(-60, 60))
    high = float(ground.hills.height_m(x)) + float(rng.uniform(low_m, 1.9))
    around = float(rng.normal(0, turn_rad)) + np.pi * float(rng.integers(2))
    up = float(rng.normal(-0.02, 0.05))
    way = np.array([np.cos(around) * np.cos(up), np.sin(around) * np.cos(up), np.sin(up)])
    return np.array([x, -3.0, high]), way


@pytest.mark.parametrize("label", [DRIVEABLE, TERRAIN])
def test_a_ray_meets_hills_where_dense_steps_do(world: World, label: int) -> None:
    """Over crests and into valleys, within 5 mm of height; also the second hill behind a crest."""
    rng = np.random.default_rng(0)
    surfaces = np.full_like(world.ground.surface, label)
    bare = world.ground._replace(surface=surfaces, hills=Hills(4.0, 120.0, 7.0))
    lift = KERB_M if label == TERRAIN else 0.0
    over_crests = over_valleys = 0
    for _ in range(250):
        start, way = draw_ray(rng, bare, 0.3)
        distance, found, face = hit_ground(bare, *start, *way)
        expected, _ = march(bare, start, way, 150.0)
        if math.isinf(expected):
            assert distance > 149.99
            continue
        hit = start + distance * way
        off_m = hit[2] - lift - float(bare.hills.height_m(hit[0]))
        assert distance == pytest.approx(expected, abs=5e-3)
        assert abs(off_m) < 1e-3
        assert (found, face) == (label, False)
        between = np.asarray(bare.hills.height_m(start[0] + np.linspace(0, distance, 50) * way[0]))
        over_crests += between.max() > max(between[0], between[-1]) + 0.1
        over_valleys += between.min() < min(between[0], between[-1]) - 0.5
    assert over_crests > 10
    assert over_valleys > 10


def test_kerbs_of_a_hilly_street_are_met_as_dense_steps_do(world: World) -> None:
    rng = np.random.default_rng(1)
    right = faces = 0
    for _ in range(300):
        start, way = draw_ray(rng, world.ground, 1.0, low_m=0.3)
        distance, found, face = hit_ground(world.ground, *start, *way)
        expected, label = march(world.ground, start, way, 60.0)
        if math.isinf(expected):
            right += distance > 59.9
            continue
        faces += face
        right += abs(distance - expected) < (0.15 if face else 5e-3) and found == label
    assert faces > 10
    # a level ray's way through a kerb of less than its own length is not seen, as when flat
    assert right / 300 > 0.97


@pytest.mark.parametrize("crest_m", [0.5, 2.0, 4.0, 12.0])
def test_hills_are_as_high_and_no_steeper_than_they_should(crest_m: float) -> None:
    for seed in range(20):
        hills = draw_hills(np.random.default_rng(seed), crest_m)
        x = np.arange(0.0, 2 * hills.wave_m, 0.01)
        high = np.asarray(hills.height_m(x))
        assert high.min() == pytest.approx(0.0, abs=1e-3)
        assert high.max() == pytest.approx(crest_m, abs=1e-3)
        assert hills.wave_m >= 60
        assert hills.wave_m <= 120 or hills.steepest > 0.06
        slope = np.gradient(high, x)
        assert np.abs(slope).max() < 0.081
        assert np.abs(slope - hills.slope(x))[1:-1].max() < 1e-4


def test_kernels_and_arrays_have_the_same_slope(world: World) -> None:
    for x in np.linspace(-200, 200, 41):
        assert slope_at(world.ground, x) == pytest.approx(
            float(world.ground.hills.slope(x)), abs=1e-12
        )


def corners(half_m: np.ndarray) -> np.ndarray:
    signs = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)])
    return signs * half_m


@pytest.mark.parametrize("time_s", [0.0, 1.9])
def test_everything_stands_on_the_ground_at_its_place(world: World, time_s: float) -> None:
    """Vehicles and cones follow the slope; people, poles and trees are upright; no wall floats."""
    hills = world.ground.hills
    boxes = world.boxes(time_s)
    prims = world.at(time_s)
    first = np.cumsum([0, *(len(obj.parts) for obj in world.objects)])
    tilted = 0
    for i, obj in enumerate(world.objects):
        box = boxes[i]
        half = np.array(obj.size_m) / 2
        bottom = corners(half)[::2] @ box[:3, :3].T + box[:3, 3]
        over_m = bottom[:, 2] - hills.height_m(bottom[:, 0]) - obj.z_m
        middle = box[:3, 3] - half[2] * box[:3, 2]
        assert middle[2] == pytest.approx(float(hills.height_m(middle[0])) + obj.z_m)
        if obj.leans:
            assert np.abs(over_m).max() < 0.08  # a bus on a crest
            tilted += abs(box[2, 2]) < 0.9995
        else:
            np.testing.assert_allclose(box[:3, 2], [0, 0, 1], atol=1e-12)
        own = range(first[i], first[i + 1])
        if not obj.tracked and obj.parts[0].kind == BOX:  # houses, walls, hedges, shelters
            last = own[-1]
            foot = corners(prims.half_m[last]) @ prims.axes[last].T + prims.centre_m[last]
            low = foot[foot[:, 2] < foot[:, 2].mean()]
            assert (low[:, 2] < hills.height_m(low[:, 0]) + obj.z_m).all()
        lowest = []
        for part in own:
            at_m = prims.centre_m[part] + prims.velocity_mps[part] * time_s
            lowest.append(at_m[2] - np.abs(prims.axes[part, 2]) @ prims.half_m[part])
        assert min(lowest) < float(hills.height_m(middle[0])) + obj.z_m + 0.3
    assert tilted > 20


def test_the_car_stands_on_the_road_it_drives_on(world: World) -> None:
    times = np.linspace(0, 2, 21)
    street_from_ego = world.drive.street_from_ego(times)
    x = street_from_ego[:, 0, 3]
    hills = world.ground.hills
    np.testing.assert_allclose(street_from_ego[:, 2, 3], hills.height_m(x))
    normal = np.stack([-np.asarray(hills.slope(x)), 0 * x, np.ones(len(x))], -1)
    normal /= np.linalg.norm(normal, axis=1)[:, None]
    lean = np.arccos(np.clip((normal * street_from_ego[:, :3, 2]).sum(1), -1, 1))
    assert lean.max() < 0.006  # what the springs give
    for heading in np.linspace(0, 6, 7):
        pitch, roll = hills.tilt_rad(10.0, heading)
        slope = float(hills.slope(10.0))
        expected = np.array([-slope, 0, 1]) / math.hypot(slope, 1)
        np.testing.assert_allclose(rotation(heading, pitch, roll)[:, 2], expected, atol=1e-12)


def test_a_moving_object_is_between_its_places_at_two_moments(world: World) -> None:
    """The LiDAR takes velocities as constant within a turn: less than its noise is lost."""
    early = world.at(1.0)
    late = world.at(1.05)
    moved = early.centre_m + early.velocity_mps * 1.05
    apart = np.abs(moved - late.centre_m - late.velocity_mps * 1.05).max(1)
    assert apart.max() < 0.015


def test_errors_of_flat_poses_are_small_and_slow() -> None:
    drawn = [draw_flat_poses(np.random.default_rng(seed)) for seed in range(300)]
    now, soon, later, long = (
        np.degrees([error.error_rad(t) for error in drawn]) for t in (3.0, 3.05, 4.0, 8.0)
    )
    assert now.std() == pytest.approx(0.2, rel=0.1)
    assert np.abs(soon - now).max() < 0.06
    assert 0.4 < np.corrcoef(now.ravel(), later.ravel())[0, 1] < 0.8
    assert abs(np.corrcoef(now.ravel(), long.ravel())[0, 1]) < 0.15
    true = pose(np.eye(3), np.array([700.0, 800.0, 3.0]))
    np.testing.assert_array_equal(drawn[0].written(true, 1.0)[:3, 3], [700.0, 800.0, 0.0])

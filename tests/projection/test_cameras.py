"""Projection, visibility and looking up pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsweep.projection.cameras import (
    pixel_rows,
    project,
    sample_pixel_labels,
    surest_labels,
    visible,
)
from clipsweep.projection.frames import Pairs
from clipsweep.projection.pose import Pose
from tests.projection.scenes import camera, pixels, pose, shift

SEEDS = st.integers(0, 2**32 - 1)
CELL_DEG = float(np.rad2deg(16 / 80))  # 16 px of the camera of tests.projection.scenes


@settings(deadline=None)
@given(SEEDS)
def test_back_projection_returns_the_point(seed):
    random = np.random.default_rng(seed)
    global_from_lidar = pose(random, 1000.0)
    cameras = [
        replace(camera(global_from_lidar), global_from_cam=pose(random, 1000.0)) for _ in range(2)
    ]
    cameras.append(camera(global_from_lidar))
    xyz = (random.normal(size=(200, 3)) * 30).astype(np.float32)
    pairs = project(xyz, global_from_lidar, cameras)
    for index, cam in enumerate(cameras):
        mine = pairs[pairs.camera == index]
        ray = np.concatenate([mine.uv, np.ones((len(mine), 1))], axis=1) @ np.linalg.inv(cam.K).T
        in_lidar = (global_from_lidar.inverse() @ cam.global_from_cam).apply(
            ray * mine.depth[:, None]
        )
        distance = np.linalg.norm(xyz[mine.point], axis=1, keepdims=True) + 1000
        np.testing.assert_allclose(in_lidar / distance, xyz[mine.point] / distance, atol=2e-6)


def test_a_point_in_two_cameras_makes_two_pairs():
    pairs = project(
        np.array([[10, 0, 0]], np.float32), shift(0), [camera(shift(0)), camera(shift(0))]
    )
    np.testing.assert_array_equal(pairs.point, [0, 0])
    np.testing.assert_array_equal(pairs.camera, [0, 1])
    np.testing.assert_allclose(pairs.uv, [[80, 45], [80, 45]])
    np.testing.assert_allclose(pairs.depth, [10, 10])


def test_many_cameras_that_see_every_point():
    xyz = np.tile(np.float32([10, 0, 0]), (50, 1))
    assert len(project(xyz, shift(0), [camera(shift(0))] * 5)) == 250


def test_the_cameras_motion_between_the_times_counts():
    moved = camera(shift(2.0))  # the car drove 2 m before the image was taken
    pairs = project(np.array([[10, 1, 0]], np.float32), shift(0), [moved])
    np.testing.assert_allclose(pairs.depth, [8])
    np.testing.assert_allclose(pairs.uv, [[80 - 80 / 8, 45]])


def test_degenerate_input():
    front = camera(shift(0))
    assert len(project(np.empty((0, 3), np.float32), shift(0), [front])) == 0
    assert len(project(np.ones((4, 3), np.float32), shift(0), [])) == 0
    odd = np.array(
        [[0, 0, 0], [np.nan, 0, 0], [np.inf, 0, 0], [3e38, 3e38, 3e38], [-5, 0, 0], [1, 0, 0]],
        np.float32,
    )
    assert len(project(odd, shift(0), [front])) == 0  # a depth of exactly the minimum is too near
    none = project(odd, shift(0), [front])
    assert len(visible(none, [front], CELL_DEG, 0.1, 0.5)) == 0
    assert len(sample_pixel_labels(none, [front], [pixels(np.zeros((9, 16)))])[0]) == 0


def test_the_border_is_strict():
    depth = 10.0
    focal = 80.0
    v = np.array([1.0, 1.01, 88.99, 89.0])
    xyz = np.column_stack([np.full(4, depth), np.zeros(4), (45 - v) * depth / focal]).astype(
        np.float32
    )
    np.testing.assert_array_equal(project(xyz, shift(0), [camera(shift(0))]).point, [1, 2])
    assert len(project(xyz, shift(0), [camera(shift(0))], border_px=0.0)) == 4


def pairs_at(uv, depth):
    m = len(depth)
    return Pairs(
        np.arange(m, dtype=np.int32), np.zeros(m, np.uint8), np.float32(uv), np.float32(depth)
    )


def test_a_point_behind_something_nearer_is_hidden():
    pairs = pairs_at([[20, 20], [22, 21], [23, 20], [60, 20]], [8, 20, 9.2, 20])
    front = [camera(shift(0))]
    np.testing.assert_array_equal(
        visible(pairs, front, CELL_DEG, 0.1, 0.5), [True, False, True, True]
    )


def test_reach_looks_into_the_cells_around():
    pairs = pairs_at([[20, 20], [20, 40], [20, 60]], [8, 20, 20])
    front = [camera(shift(0))]
    np.testing.assert_array_equal(visible(pairs, front, CELL_DEG, 0.1, 0.5), [True, True, True])
    np.testing.assert_array_equal(
        visible(pairs, front, CELL_DEG, 0.1, 0.5, dilate_cells=1), [True, False, True]
    )


def test_cells_cover_the_same_angle_whatever_the_size_of_the_image():
    """The same two rays in images of 160 and of 1,600 px, at one cell's distance or none."""
    near_and_far = np.float32([[8, 12 / 80, 12 / 80], [20, 50 / 80, 50 / 80]])  # 1.5, 2.5 px of 160
    seen = []
    for size_hw in ((90, 160), (900, 1600)):
        front = [camera(shift(0), size_hw)]
        pairs = project(near_and_far, shift(0), front)
        seen.append([list(visible(pairs, front, d, 0.1, 0.5)) for d in (CELL_DEG, CELL_DEG / 16)])
    assert seen[0] == seen[1] == [[True, False], [True, True]]
    both = [camera(shift(0), (90, 160)), camera(shift(0), (900, 1600))]
    pairs = project(near_and_far, shift(0), both)
    assert list(visible(pairs, both, CELL_DEG, 0.1, 0.5)) == [True, False, True, False]


def test_the_teachers_grid_is_stretched_over_the_image():
    label = np.arange(6).reshape(2, 3)
    uv = [[1, 1], [54, 44], [159, 1], [1, 46], [80, 89], [159, 89]]
    found, score = sample_pixel_labels(
        pairs_at(uv, np.ones(6)), [camera(shift(0))], [pixels(label, 0.5)]
    )
    np.testing.assert_array_equal(found, [0, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(score, np.full(6, 0.5))


def test_the_pixel_of_highest_score_gives_its_label():
    pairs = replace(pairs_at(np.ones((6, 2)), np.ones(6)), point=np.int32([3, 1, 3, 1, 0, 0]))
    label = np.array([7, 2, 8, 4, 5, 255], np.uint8)
    score = np.array([0.5, 0.6, 0.5, 0.2, 0.1, 0.9], np.float32)
    found = surest_labels(pairs, label, score, 5)
    np.testing.assert_array_equal(found, [5, 2, 255, 8, 255])


def test_pixel_rows_equal_a_loop():
    random = np.random.default_rng(0)
    grids = [(2, 3), (7, 5), (90, 160)]
    front = camera(shift(0))
    pairs = pairs_at(random.uniform([1, 1], [159, 89], (500, 2)), np.ones(500))
    pairs = replace(pairs, camera=random.integers(0, 3, 500).astype(np.uint8))
    laid = [
        (c, row, column)
        for c, (h, w) in enumerate(grids)
        for row in range(h)
        for column in range(w)
    ]
    for row, c, (u, v) in zip(
        pixel_rows(pairs, [front] * 3, grids), pairs.camera, pairs.uv, strict=True
    ):
        height, width = grids[c]
        assert laid[row] == (c, int(v / 90 * height), int(u / 160 * width))


def test_far_from_the_origin_nothing_is_lost():
    """Global coordinates of a city: rounding to float32 would move pixels by 0.1."""
    random = np.random.default_rng(0)
    there = Pose(pose(random).rotation, np.array([1.2e6, -3.4e6, 50.0]))
    here = Pose(there.rotation, np.zeros(3))
    xyz = (random.normal(size=(300, 3)) * 40).astype(np.float32)
    far = project(xyz, there, [camera(there)])
    near = project(xyz, here, [camera(here)])
    np.testing.assert_array_equal(far.point, near.point)
    np.testing.assert_allclose(far.uv, near.uv, atol=1e-3)

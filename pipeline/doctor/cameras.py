"""Checks of cameras: axes, inverted extrinsics, intrinsics, mix-ups, empty and frozen images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise

import numpy as np

from clipsweep.pipeline.doctor.survey import Look, Survey
from clipsweep.projection.cameras import project
from clipsweep.projection.frames import Camera
from clipsweep.projection.pose import Pose

_UPRIGHT = 0.5
_VIEW_SHARE = 0.002
_OFF_CENTRE = 0.15
_BLACK = 6
_MOVED_M = 1.0


def camera_axes(survey: Survey) -> str | None:
    """A camera's y axis does not point down, whichever way its extrinsics are read."""
    for look, camera in _each(survey):
        if not _upright(camera.global_from_cam) and not _upright(_inverted(look, camera)):
            return (
                f"camera axes: y of {camera.name} does not point down; its frame must be x right, "
                "y down, z ahead"
            )
    return None


def camera_inverted(survey: Survey) -> str | None:
    """A camera's y axis points down only where its extrinsics are inverted."""
    for look, camera in _each(survey):
        if not _upright(camera.global_from_cam) and _upright(_inverted(look, camera)):
            return (
                f"extrinsics inverted: {camera.name} stands upright only with the inverse of its "
                "extrinsics; give the transform from the camera to the vehicle"
            )
    return None


def few_points_in_view(survey: Survey) -> str | None:
    """Hardly any point of the sweeps falls into a camera's image."""
    shares: dict[str, list[float]] = {}
    for look in survey.looks:
        cameras = look.frame.cameras
        pairs = project(look.rows[:, :3].copy(), look.global_from_lidar, cameras)
        counts = np.bincount(pairs.camera, minlength=len(cameras))
        for camera, count in zip(cameras, counts, strict=True):
            shares.setdefault(camera.name, []).append(count / max(len(look.rows), 1))
    for name, values in shares.items():
        share = float(np.median(values))
        if share < _VIEW_SHARE:
            return f"few points in view: {share:.2%} of the points fall into {name}"
    return None


def intrinsics_of_another_size(survey: Survey) -> str | None:
    """The principal point is far from the image's centre."""
    for _, camera in _each(survey):
        height, width = camera.size_hw
        off = np.abs(camera.K[:2, 2] / [width, height] - 0.5).max()
        if off > _OFF_CENTRE:
            u, v = camera.K[:2, 2]
            return (
                f"intrinsics of another size: {camera.name} has its centre at ({u:.0f}, {v:.0f}) of"
                f" an image of {width}x{height}; scale K with the image"
            )
    return None


def cameras_mixed_up(survey: Survey) -> str | None:
    """A camera looks to another side of the car's way than its name says."""
    sides: dict[str, list[float]] = {}
    for look, heading in _headings(survey):
        for camera in look.frame.cameras:
            axis = camera.global_from_cam.rotation[:2, 2]
            side = float(heading[0] * axis[1] - heading[1] * axis[0])
            sides.setdefault(camera.name, []).append(side)
    for name, values in sides.items():
        side = float(np.median(values))
        left = "LEFT" in name.upper()
        right = "RIGHT" in name.upper()
        if left != right and abs(side) > 0.3 and (side > 0) != left:
            seen = "left" if side > 0 else "right"
            return f"cameras mixed up: {name} looks to the {seen} of the car's way"
    return None


def empty_pixels(survey: Survey) -> str | None:
    """The corners of an image are black in every frame: a fisheye's circle, or empty pixels."""
    black: dict[str, list[bool]] = {}
    for look in survey.looks:
        for camera, thumb in zip(look.frame.cameras, look.thumbs, strict=True):
            corners = thumb[[0, 0, -1, -1], [0, -1, 0, -1]]
            dark = corners.max() <= _BLACK and thumb.max() > 10 * _BLACK
            black.setdefault(camera.name, []).append(bool(dark))
    for name, values in black.items():
        if all(values):
            return (
                f"images not undistorted: the corners of {name} are black in all frames; pixels "
                "without an image get labels too"
            )
    return None


def frozen_images(survey: Survey) -> str | None:
    """Two frames of a scene have the same image, or the same sweep."""
    for earlier, later in _pairs(survey):
        names = ["the LiDAR", *(camera.name for camera in later.frame.cameras)]
        for name, before, after in zip(names, earlier.digests, later.digests, strict=False):
            if before == after:
                return (
                    f"frozen sensor: {name} gives the same bytes in {earlier.frame.id} and "
                    f"{later.frame.id}"
                )
    return None


CAMERA_CHECKS = (
    camera_axes,
    camera_inverted,
    few_points_in_view,
    intrinsics_of_another_size,
    cameras_mixed_up,
    empty_pixels,
    frozen_images,
)


def _each(survey: Survey) -> Iterator[tuple[Look, Camera]]:
    for look in survey.looks:
        for camera in look.frame.cameras:
            yield look, camera


def _upright(global_from_cam: Pose) -> bool:
    return bool(-global_from_cam.rotation[2, 1] > _UPRIGHT)


def _inverted(look: Look, camera: Camera) -> Pose:
    """The camera's pose, were its extrinsics the other way round."""
    lidar_from_cam = look.global_from_lidar.inverse() @ camera.global_from_cam
    return look.global_from_lidar @ lidar_from_cam.inverse()


def _pairs(survey: Survey) -> Iterator[tuple[Look, Look]]:
    """Successive looks at each scene."""
    for _, looks in groupby(survey.looks, lambda look: look.frame.scene):
        yield from pairwise(list(looks))


def _headings(survey: Survey) -> Iterator[tuple[Look, np.ndarray]]:
    """Looks at a moving car, with the direction of its way as a unit vector in the plane."""
    for earlier, later in _pairs(survey):
        way = (later.global_from_lidar.translation - earlier.global_from_lidar.translation)[:2]
        length = float(np.linalg.norm(way))
        if length > _MOVED_M:
            yield earlier, way / length

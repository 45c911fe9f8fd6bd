"""Small made-up sensors and drives for the tests of projection."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from clipsweep.projection.frames import Camera, File, Frame, PixelLabels, Sweep
from clipsweep.projection.pose import Pose

LOOKING_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
"""Rotation of a camera that looks along x of a LiDAR whose z points up.

Its z is x, its x is -y, its y is -z.
"""


def pose(random: np.random.Generator, spread_m: float = 10.0) -> Pose:
    rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
    rotation[:, 0] *= np.linalg.det(rotation)
    return Pose(rotation, random.normal(size=3) * spread_m)


def shift(x: float, y: float = 0.0, z: float = 0.0) -> Pose:
    return Pose(np.eye(3), np.array([x, y, z], float))


def camera(
    global_from_lidar: Pose, size_hw: tuple[int, int] = (90, 160), name: str = "front"
) -> Camera:
    """A camera at the LiDAR's place that looks along its x axis."""
    height, width = size_hw
    intrinsic = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]])
    looking = global_from_lidar @ Pose(LOOKING_FORWARD, np.zeros(3))
    return Camera(name, 0, looking, intrinsic, size_hw, File(Path("none.jpg"), 0))


def write(path: Path, xyz: np.ndarray, intensity: float = 51.0) -> File:
    """A nuScenes sweep file: x, y, z, intensity, ring."""
    rows = np.column_stack([xyz, np.full(len(xyz), intensity), np.zeros(len(xyz))]).astype(
        np.float32
    )
    path.write_bytes(rows.tobytes())
    return File(path, rows.nbytes)


def frame(name: str, time_us: int, sweeps: list[Sweep], cameras: tuple[Camera, ...] = ()) -> Frame:
    return Frame(name, "drive", time_us, tuple(sweeps), cameras, None)


def pixels(label: np.ndarray, score: float = 1.0) -> PixelLabels:
    return PixelLabels(label.astype(np.uint8), np.full(label.shape, score, np.float16))

"""Sensor rig of a folder data set (``rig.yaml``): intrinsics, distortion, extrinsics, time unit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from clipsweep.pipeline.datasets.checks import check_intrinsics
from clipsweep.pipeline.datasets.folder.entries import (
    check_keys,
    choice,
    column_names,
    extrinsics,
    mapping,
    number,
    numbers,
    rotation,
    shown,
    text,
)
from clipsweep.pipeline.yaml_files import read_yaml
from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

COEFFICIENTS: Mapping[str, tuple[int, ...]] = {
    "none": (0,),
    "plumb_bob": (4, 5),
    "rational_polynomial": (8,),
    "fisheye": (4,),
}
"""Distortion models by their ROS names, and how many coefficients each takes, in OpenCV's order.

``plumb_bob`` k1 k2 p1 p2 [k3]; ``rational_polynomial`` k1 k2 p1 p2 k3 k4 k5 k6; ``fisheye``
(equidistant) k1 k2 k3 k4.
"""
UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
STAMPS = ("start", "end", "compensated")
POINT_TIMES = ("stamp", "first", "epoch")
COLUMNS = ("x", "y", "z", "intensity")
_COEFFICIENT_MAX = 1e3
_SIDE_MAX_PX = 100_000
_MANY = "points of several LiDARs cannot be mixed: write one cloud a turn in one LiDAR's frame"


@dataclass(frozen=True, eq=False, slots=True)
class RigCamera:
    """Camera of a rig, as calibrated: intrinsics ``K`` [px], distortion, size [px], extrinsics."""

    name: str
    K: Float64[np.ndarray, "3 3"]
    size_hw: tuple[int, int]
    model: str
    coefficients: tuple[float, ...]
    vehicle_from_camera: Pose

    @property
    def distorted(self) -> bool:
        """Whether its images must be undistorted before a pinhole projection holds.

        A fisheye is distorted also where all its coefficients are zero.
        """
        return self.model == "fisheye" or any(self.coefficients)


@dataclass(frozen=True, eq=False, slots=True)
class RigLidar:
    """LiDAR of a rig: extrinsics, and what its files hold.

    Attributes:
        vehicle_from_lidar: its extrinsics.
        stamp: what the time in a file's name is: the ``start`` or the ``end`` of its turn, or the
            moment that its points are motion ``compensated`` to.
        turn_s: how long a turn takes [s]; 0 where it is not given.
        columns: names of the columns of .bin and two-dimensional .npy files.
        intensity: name of the column or field with the intensity; empty: there is none.
        time: name of the column or field with a time for each point; empty: there is none.
        time_unit: its unit.
        time_from: what it counts from: the ``stamp``, the ``first`` point, or the clock's
            ``epoch``.
    """

    vehicle_from_lidar: Pose
    stamp: str
    turn_s: float
    columns: tuple[str, ...]
    intensity: str
    time: str
    time_unit: str
    time_from: str


@dataclass(frozen=True, eq=False, slots=True)
class Rig:
    """Sensors of a car, and how its log is written.

    Attributes:
        time_unit: of file names and of poses.csv: s, ms, us or ns.
        up_from_world: rotation of the poses' world frame to one whose z axis points up.
        lidar: the LiDAR.
        cameras: the cameras.
    """

    time_unit: str
    up_from_world: Pose
    lidar: RigLidar
    cameras: tuple[RigCamera, ...]


def read_rig(path: Path, sensor_height_m: float) -> Rig:
    """Reads and validates ``rig.yaml``.

    Args:
        path: the file.
        sensor_height_m: ``data.sensor_height_m``, which the file's own must equal.

    Raises:
        BadInput: there is no such file, or an entry is missing, unknown or not what it must be.
    """
    if not path.is_file():
        raise BadInput(path, "is missing", "describe the sensors there: configs/data/folder.md")
    tree = read_yaml(path)
    if "lidars" in tree or isinstance(tree.get("lidar"), list):
        raise BadInput(path, "has several LiDARs", _MANY)
    check_keys(tree, ("time_unit", "lidar"), ("cameras", "up_from_world"), str(path))
    cameras = mapping(tree.get("cameras") or {}, f"{path}, cameras")
    return Rig(
        choice(tree["time_unit"], UNITS_PER_S, f"{path}, time_unit"),
        rotation(tree.get("up_from_world", np.eye(3).tolist()), f"{path}, up_from_world"),
        _lidar(mapping(tree["lidar"], f"{path}, lidar"), f"{path}, lidar", sensor_height_m),
        tuple(_camera(name, entry, path) for name, entry in cameras.items()),
    )


def _lidar(tree: Mapping[str, Any], where: str, sensor_height_m: float) -> RigLidar:
    optional = ("turn_s", "columns", "intensity", "time", "time_unit", "time_from", "height_m")
    check_keys(tree, ("vehicle_from_lidar", "stamp"), optional, where)
    _check_height(tree.get("height_m", sensor_height_m), sensor_height_m, where)
    lidar = RigLidar(
        extrinsics(tree["vehicle_from_lidar"], f"{where}.vehicle_from_lidar"),
        choice(tree["stamp"], STAMPS, f"{where}.stamp"),
        number(tree.get("turn_s", 0.0), 1.0, f"{where}.turn_s"),
        column_names(tree.get("columns", COLUMNS), f"{where}.columns"),
        text(tree.get("intensity", "intensity"), f"{where}.intensity"),
        text(tree.get("time", ""), f"{where}.time"),
        choice(tree.get("time_unit", "s"), UNITS_PER_S, f"{where}.time_unit"),
        choice(tree.get("time_from", "stamp"), POINT_TIMES, f"{where}.time_from"),
    )
    _check_stamp(lidar, where)
    return lidar


def _check_height(height_m: Any, sensor_height_m: float, where: str) -> None:
    if number(height_m, 100.0, f"{where}.height_m") != sensor_height_m:
        raise BadInput(
            f"{where}.height_m",
            f"is {height_m:g} m, data.sensor_height_m is {sensor_height_m:g} m",
            f"set data.sensor_height_m={height_m:g}",
        )


def _check_stamp(lidar: RigLidar, where: str) -> None:
    if lidar.stamp == "compensated" and lidar.time:
        raise BadInput(
            f"{where}.time",
            f"is {lidar.time!r}, but stamp is compensated",
            "leave time out, or say whether the stamp is the start or the end of a turn",
        )
    if lidar.stamp != "compensated" and not lidar.time and not lidar.turn_s:
        raise BadInput(
            f"{where}.stamp",
            f"is {lidar.stamp}, with neither time (a column) nor turn_s",
            "give one of them, or stamp: compensated where points are motion compensated",
        )


def _camera(name: Any, entry: Any, path: Path) -> RigCamera:
    where = f"{path}, cameras.{name}"
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]{0,99}", name):
        raise BadInput(where, "cannot name a folder", "letters, digits, '_', '.' and '-'")
    tree = mapping(entry, where)
    check_keys(tree, ("K", "size", "vehicle_from_camera"), ("distortion",), where)
    K = numbers(tree["K"], (3, 3), f"{where}.K")
    check_intrinsics(K, f"{where}.K")
    model, coefficients = _distortion(tree.get("distortion", {"model": "none"}), where)
    return RigCamera(
        name,
        K,
        _size_hw(tree["size"], f"{where}.size"),
        model,
        coefficients,
        extrinsics(tree["vehicle_from_camera"], f"{where}.vehicle_from_camera"),
    )


def _distortion(entry: Any, camera: str) -> tuple[str, tuple[float, ...]]:
    where = f"{camera}.distortion"
    tree = mapping(entry, where)
    check_keys(tree, ("model",), ("coefficients",), where)
    model = choice(tree["model"], COEFFICIENTS, f"{where}.model")
    given = tree.get("coefficients", [])
    if not isinstance(given, list) or len(given) not in COEFFICIENTS[model]:
        counts = " or ".join(map(str, COEFFICIENTS[model]))
        raise BadInput(f"{where}.coefficients", f"is {shown(given)}", f"{model} has {counts}")
    coefficients = numbers(given, (len(given),), f"{where}.coefficients")
    if (np.abs(coefficients) > _COEFFICIENT_MAX).any():
        raise BadInput(f"{where}.coefficients", f"is {shown(given)}", "no lens has such")
    return model, tuple(coefficients.tolist())


def _size_hw(entry: Any, where: str) -> tuple[int, int]:
    whole = isinstance(entry, list) and len(entry) == 2 and all(type(side) is int for side in entry)
    if not whole or not all(0 < side <= _SIDE_MAX_PX for side in entry):
        raise BadInput(where, f"is {shown(entry)}", "it must be [width, height] in pixels")
    return entry[1], entry[0]

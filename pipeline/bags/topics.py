"""Topics of a bag that are imported: which sensor is where, and where poses come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipsweep.pipeline.datasets.folder.entries import (
    check_keys,
    choice,
    extrinsics,
    mapping,
    number,
    shown,
)
from clipsweep.pipeline.datasets.folder.rig import POINT_TIMES, STAMPS, UNITS_PER_S
from clipsweep.pipeline.yaml_files import read_yaml
from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

CLOCKS = ("header", "receive")


@dataclass(frozen=True, eq=False, slots=True)
class LidarTopic:
    """Point clouds to import.

    Attributes:
        topic: of sensor_msgs/PointCloud2.
        stamp: what a message's time is: ``start`` or ``end`` of a turn, or the moment that its
            points are motion ``compensated`` to.
        turn_s: how long a turn takes [s]; 0: not given.
        intensity: its field; empty: none.
        time: field with a time for each point; empty: none.
        time_unit: its unit.
        time_from: what it counts from, as in rig.yaml.
        vehicle_from_sensor: extrinsics; None: from /tf_static.
    """

    topic: str
    stamp: str
    turn_s: float
    intensity: str
    time: str
    time_unit: str
    time_from: str
    vehicle_from_sensor: Pose | None


@dataclass(frozen=True, eq=False, slots=True)
class CameraTopic:
    """Images to import: their topic, that of their calibration, and their extrinsics.

    ``rectified`` images have the projection matrix of their calibration and no distortion.
    """

    topic: str
    info: str
    rectified: bool
    vehicle_from_sensor: Pose | None


@dataclass(frozen=True, eq=False, slots=True)
class Topics:
    """What is imported of a bag.

    Attributes:
        vehicle: frame that is fixed to the car.
        clock: times of messages: their ``header`` or when they were ``receive``d.
        poses: topic of nav_msgs/Odometry or geometry_msgs/PoseStamped; empty: from /tf.
        world: frame of the poses, where they come from /tf.
        lidar: the LiDAR.
        cameras: by the name that each gets.
    """

    vehicle: str
    clock: str
    poses: str
    world: str
    lidar: LidarTopic
    cameras: Mapping[str, CameraTopic]


def read_topics(path: Path) -> Topics:
    """Reads and validates a topics file.

    Raises:
        BadInput: there is no such file, or an entry is missing, unknown or not what it must be.
    """
    tree = read_yaml(path)
    check_keys(tree, ("vehicle", "lidar", "poses"), ("cameras", "clock"), str(path))
    poses = mapping(tree["poses"], f"{path}, poses")
    check_keys(poses, (), ("topic", "tf"), f"{path}, poses")
    if len(poses) != 1:
        raise BadInput(f"{path}, poses", f"is {shown(poses)}", "give topic, or tf: WORLD_FRAME")
    cameras = mapping(tree.get("cameras") or {}, f"{path}, cameras")
    return Topics(
        _name(tree["vehicle"], f"{path}, vehicle").lstrip("/"),
        choice(tree.get("clock", "header"), CLOCKS, f"{path}, clock"),
        _name(poses["topic"], f"{path}, poses.topic") if "topic" in poses else "",
        _name(poses["tf"], f"{path}, poses.tf").lstrip("/") if "tf" in poses else "",
        _lidar(mapping(tree["lidar"], f"{path}, lidar"), f"{path}, lidar"),
        {name: _camera(entry, f"{path}, cameras.{name}") for name, entry in cameras.items()},
    )


def _lidar(tree: Mapping[str, Any], where: str) -> LidarTopic:
    optional = ("turn_s", "intensity", "time", "time_unit", "time_from", "vehicle_from_sensor")
    check_keys(tree, ("topic", "stamp"), optional, where)
    return LidarTopic(
        _name(tree["topic"], f"{where}.topic"),
        choice(tree["stamp"], STAMPS, f"{where}.stamp"),
        number(tree.get("turn_s", 0.0), 1.0, f"{where}.turn_s"),
        str(tree.get("intensity", "intensity")),
        str(tree.get("time", "")),
        choice(tree.get("time_unit", "s"), UNITS_PER_S, f"{where}.time_unit"),
        choice(tree.get("time_from", "stamp"), POINT_TIMES, f"{where}.time_from"),
        _sensor(tree, where),
    )


def _camera(entry: Any, where: str) -> CameraTopic:
    tree = mapping(entry, where)
    check_keys(tree, ("topic", "info"), ("rectified", "vehicle_from_sensor"), where)
    rectified = tree.get("rectified", False)
    if not isinstance(rectified, bool):
        raise BadInput(f"{where}.rectified", f"is {shown(rectified)}", "it must be true or false")
    topic = _name(tree["topic"], f"{where}.topic")
    return CameraTopic(topic, _name(tree["info"], f"{where}.info"), rectified, _sensor(tree, where))


def _sensor(tree: Mapping[str, Any], where: str) -> Pose | None:
    if "vehicle_from_sensor" not in tree:
        return None
    return extrinsics(tree["vehicle_from_sensor"], f"{where}.vehicle_from_sensor")


def _name(entry: Any, where: str) -> str:
    if not isinstance(entry, str) or not entry:
        raise BadInput(where, f"is {shown(entry)}", "it must be a name")
    return entry

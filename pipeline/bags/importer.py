"""Imports a ROS bag into the folder format: rig.yaml, poses.csv, sweeps and images, as a stream.

The messages are read twice: first those that are small (transforms, poses, calibrations), then
sweeps and images, each of which is written as it comes.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.spatial.transform import Rotation

from clipsweep.pipeline.artifacts.store import write_whole
from clipsweep.pipeline.bags.messages import (
    calibration,
    frame_of,
    image_file,
    point_fields,
    pose_of,
    stamp_us,
)
from clipsweep.pipeline.bags.topics import CameraTopic, LidarTopic, Topics
from clipsweep.pipeline.bags.transforms import Transforms, poses_of_vehicle
from clipsweep.pipeline.datasets.folder.clouds import INSTALL, since_stamp
from clipsweep.pipeline.datasets.folder.rig import COLUMNS
from clipsweep.projection.errors import BadInput
from clipsweep.projection.pose import Pose

_TF = ("/tf", "/tf_static")
_CLOUD = "sensor_msgs/msg/PointCloud2"
_IMAGES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
_INFO = "sensor_msgs/msg/CameraInfo"
_POSES = {
    "nav_msgs/msg/Odometry": lambda message: message.pose.pose,
    "geometry_msgs/msg/PoseStamped": lambda message: message.pose,
    "geometry_msgs/msg/PoseWithCovarianceStamped": lambda message: message.pose.pose,
}


@dataclass
class Imported:
    """What was imported: counts of files and poses, and messages that were left out, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass
class _Small:
    """Transforms, poses and calibrations of a bag.

    Attributes:
        transforms: of /tf and /tf_static.
        poses: of the frame ``child``, over time [us].
        child: frame that the poses are of; empty where messages name none.
        infos: first calibration of each topic.
    """

    transforms: Transforms = field(default_factory=Transforms)
    poses: list[tuple[int, Pose]] = field(default_factory=list)
    infos: dict[str, Any] = field(default_factory=dict)
    child: str = ""


def import_bag(bag: Path, topics: Topics, out: Path) -> Imported:
    """Imports the topics of a bag into a folder; goes on where it was stopped.

    ``poses.csv``, without which the folder is no scene, is written last.

    Args:
        bag: ROS 1 bag, folder of a ROS 2 bag, or MCAP file.
        topics: what is imported.
        out: folder of the scene.

    Raises:
        BadInput: the bag is damaged, lacks a topic or a transform, or a message cannot be used;
            or rosbags is not installed.
    """
    with _opened(bag) as reader:
        _check_topics(reader, topics, bag)
        small = _read_small(reader, topics, bag)
        poses = _vehicle_poses(small, topics, bag)
        rig = _rig(small, _first_frames(reader, topics, bag), topics)
        done = Imported()
        _write_sensors(reader, topics, bag, out, done)
    done.counts["poses"] = len(poses)
    write_whole(out / "rig.yaml", yaml.safe_dump(rig, sort_keys=False).encode())
    write_whole(out / "poses.csv", _csv(poses).encode())
    return done


class _opened:
    """Opens a bag, of either version; what its parser cannot read is BadInput."""

    def __init__(self, bag: Path) -> None:
        try:
            highlevel = importlib.import_module("rosbags.highlevel")
        except ModuleNotFoundError:
            raise BadInput(bag, "needs rosbags, which is not installed", INSTALL) from None
        if not bag.exists():
            raise BadInput(bag, "is no bag: there is no such file or folder")
        self._bag = bag
        try:
            self._reader = highlevel.AnyReader([bag], default_typestore=_types())
            self._reader.open()
        except Exception as error:  # of parsers that trust their input
            raise _damaged(bag, error) from None

    def __enter__(self) -> Any:
        return self._reader

    def __exit__(self, *_: object) -> None:
        self._reader.close()


def _types() -> Any:
    """Message definitions for bags of ROS 2 that hold none."""
    typesys = importlib.import_module("rosbags.typesys")
    return typesys.get_typestore(typesys.Stores.ROS2_HUMBLE)


def _damaged(bag: Path, error: Exception) -> BadInput:
    text = (str(error).strip() or repr(error)).splitlines()[0][:200]
    cure = "if it was cut off: rosbag reindex, ros2 bag reindex or mcap recover"
    return BadInput(bag, f"cannot be read ({text})", cure)


# --- topics ---------------------------------------------------------------------------------------


def _check_topics(reader: Any, topics: Topics, bag: Path) -> None:
    """Checks that each topic is in the bag, with a type that can be read."""
    _check_topic(reader, topics.lidar.topic, (_CLOUD,), bag)
    for camera in topics.cameras.values():
        _check_topic(reader, camera.topic, _IMAGES, bag)
        _check_topic(reader, camera.info, (_INFO,), bag)
    if topics.poses:
        _check_topic(reader, topics.poses, tuple(_POSES), bag)


def _check_topic(reader: Any, topic: str, kinds: tuple[str, ...], bag: Path) -> None:
    found = {connection.msgtype for connection in reader.connections if connection.topic == topic}
    if not found:
        there = sorted({c.topic for c in reader.connections if c.msgtype in kinds})
        also = ", ".join(there) or "none"
        raise BadInput(bag, f"has no topic {topic}", f"topics of its type: {also}")
    if not found <= set(kinds):
        problem = f"has {', '.join(sorted(found))} on {topic}"
        raise BadInput(bag, problem, f"it must be {' or '.join(kinds)}")


def _messages(reader: Any, names: Iterable[str], bag: Path) -> Iterator[tuple[str, str, int, Any]]:
    """Messages of some topics in order: topic, type, time of reception [us], message."""
    wanted = set(names)
    connections = [c for c in reader.connections if c.topic in wanted]
    if not connections:  # rosbags takes none for all
        return
    try:
        for connection, received_ns, data in reader.messages(connections=connections):
            message = reader.deserialize(data, connection.msgtype)
            yield connection.topic, connection.msgtype, received_ns // 1000, message
    except BadInput:
        raise
    except (GeneratorExit, KeyboardInterrupt):
        raise
    except Exception as error:  # of parsers that trust their input
        raise _damaged(bag, error) from None


# --- transforms, poses, calibrations --------------------------------------------------------------


def _read_small(reader: Any, topics: Topics, bag: Path) -> _Small:
    small = _Small()
    infos = {camera.info for camera in topics.cameras.values()}
    names = {*_TF, *infos, *([topics.poses] if topics.poses else [])}
    for topic, kind, received_us, message in _messages(reader, names, bag):
        if topic in _TF:
            _add_transforms(small.transforms, message, topic == "/tf_static", f"{bag}, {topic}")
        elif topic in infos:
            _add_info(small, topic, message, bag)
        else:
            _add_pose(small, topics, kind, received_us, message, bag)
    return small


def _add_transforms(transforms: Transforms, message: Any, static: bool, where: str) -> None:
    for each in message.transforms:
        parent = frame_of(each)
        child = str(each.child_frame_id).lstrip("/")
        pose = pose_of(each.transform.translation, each.transform.rotation, where)
        if static:
            transforms.add_static(parent, child, pose)
        else:
            transforms.add_moving(parent, child, stamp_us(each), pose)


def _add_info(small: _Small, topic: str, message: Any, bag: Path) -> None:
    """Keeps a calibration; one that changes during the drive is refused."""
    before = small.infos.setdefault(topic, message)
    same = calibration(before, False, topic) == calibration(message, False, topic)
    if not same:
        raise BadInput(bag, f"{topic} changes during the drive", "import the parts one by one")


def _add_pose(
    small: _Small, topics: Topics, kind: str, received_us: int, message: Any, bag: Path
) -> None:
    """Keeps a pose of the vehicle: that of its child frame, where the message names one."""
    given = _POSES[kind](message)
    pose = pose_of(given.position, given.orientation, f"{bag}, {topics.poses}")
    small.child = str(getattr(message, "child_frame_id", "")).lstrip("/")
    time_us = stamp_us(message) if topics.clock == "header" else received_us
    small.poses.append((time_us, pose))


def _vehicle_poses(small: _Small, topics: Topics, bag: Path) -> list[tuple[int, Pose]]:
    """Poses ``world_from_vehicle`` in order of time; of one time the last that arrived."""
    if topics.world:
        found = poses_of_vehicle(small.transforms, topics.world, topics.vehicle)
    else:
        child = small.child or topics.vehicle
        child_from_vehicle = small.transforms.between(child, topics.vehicle)
        found = [(time_us, pose @ child_from_vehicle) for time_us, pose in small.poses]
    if not found:
        problem = f"has no pose of {topics.vehicle}"
        raise BadInput(bag, problem, "odometry such as kiss-icp's gives some: see folder.md")
    return sorted(dict(found).items())


def _csv(poses: Iterable[tuple[int, Pose]]) -> str:
    lines = ["time,x,y,z,qx,qy,qz,qw"]
    for time_us, pose in poses:
        values = [*pose.translation, *Rotation.from_matrix(pose.rotation).as_quat()]
        lines.append(",".join([str(time_us), *(f"{value:.9f}" for value in values)]))
    return "\n".join([*lines, ""])


# --- sensors --------------------------------------------------------------------------------------


def _first_frames(reader: Any, topics: Topics, bag: Path) -> dict[str, str]:
    """Coordinate frame of each sensor's topic, by its first message."""
    left = {topics.lidar.topic, *(camera.topic for camera in topics.cameras.values())}
    found: dict[str, str] = {}
    for topic, _, _, message in _messages(reader, left, bag):
        found.setdefault(topic, frame_of(message))
        if len(found) == len(left):
            break
    for topic in sorted(left - set(found)):
        raise BadInput(bag, f"has no message on {topic}")
    return found


def _rig(small: _Small, frames: dict[str, str], topics: Topics) -> dict[str, Any]:
    """Contents of ``rig.yaml``."""

    def placed(sensor: LidarTopic | CameraTopic) -> list[list[float]]:
        pose = sensor.vehicle_from_sensor
        pose = pose or small.transforms.between(topics.vehicle, frames[sensor.topic])
        return [*pose.matrix().tolist(), [0.0, 0.0, 0.0, 1.0]]

    lidar = topics.lidar
    timed = {"time": "t", "time_unit": "s", "time_from": "stamp"} if lidar.time else {}
    return {
        "time_unit": "us",
        "lidar": {
            "vehicle_from_lidar": placed(lidar),
            "stamp": lidar.stamp,
            **({"turn_s": lidar.turn_s} if lidar.turn_s else {}),
            **timed,
            "columns": [*COLUMNS, *(["t"] if lidar.time else [])],
        },
        "cameras": {
            name: {
                **calibration(small.infos[camera.info], camera.rectified, camera.info),
                "vehicle_from_camera": placed(camera),
            }
            for name, camera in topics.cameras.items()
        },
    }


def _write_sensors(reader: Any, topics: Topics, bag: Path, out: Path, done: Imported) -> None:
    """Writes sweeps and images that are not there yet."""
    names = {camera.topic: name for name, camera in topics.cameras.items()}
    seen: set[tuple[str, int]] = set()
    for topic, kind, received_us, message in _messages(reader, [topics.lidar.topic, *names], bag):
        time_us = stamp_us(message) if topics.clock == "header" else received_us
        what = f"images of {names[topic]}" if topic in names else "sweeps"
        if (topic, time_us) in seen:
            done.left_out[f"{what}: another has the same time"] += 1
            continue
        seen.add((topic, time_us))
        where = f"{bag}, {topic} at {time_us} us"
        if topic in names:
            data, ending = image_file(message, kind, where)
            path = out / "images" / names[topic] / f"{time_us}{ending}"
        else:
            path = out / "lidar" / f"{time_us}.bin"
            data = b"" if path.exists() else _sweep(message, topics.lidar, time_us, where)
        if not path.exists():
            write_whole(path, data)
        done.counts[what] += 1


def _sweep(message: Any, lidar: LidarTopic, time_us: int, where: str) -> bytes:
    """Points of a message as float32 rows; those without a position are left out."""
    fields = point_fields(message, where)
    wanted = ["x", "y", "z", *([lidar.intensity] if lidar.intensity else [])]
    for name in (*wanted, *([lidar.time] if lidar.time else [])):
        if name not in fields:
            problem = f"has no field {name!r}"
            raise BadInput(where, problem, f"fields: {', '.join(fields)}")
    rows = np.zeros((len(fields["x"]), 4 + bool(lidar.time)), np.float32)
    for column, name in enumerate(wanted):
        rows[:, column] = fields[name]
    if lidar.time:
        rows[:, 4] = since_stamp(
            where, fields[lidar.time], time_us, lidar.time_unit, lidar.time_from, lidar.stamp
        )
    return rows[np.isfinite(rows).all(axis=1)].tobytes()

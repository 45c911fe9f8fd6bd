"""Writes a scene of a folder data set as a ROS bag: ROS 1, ROS 2 or MCAP."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

KINDS = ("ros1", "ros2", "mcap")
OPTICAL = "_optical"
LATE_NS = 10**6
"""Clock of reception behind that of the headers."""

Message = tuple[str, int, Any]
"""Topic, time [us], message."""


class Ros:
    """Makes messages of a ROS version."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.store = get_typestore(Stores.ROS1_NOETIC if version == 1 else Stores.ROS2_HUMBLE)
        if version == 1:
            text = "geometry_msgs/TransformStamped[] transforms"
            self.store.register(get_types_from_msg(text, "tf2_msgs/msg/TFMessage"))

    def make(self, kind: str, **values: Any) -> Any:
        return self.store.types[kind](**values)

    def header(self, time_us: int, frame: str) -> Any:
        sec, micro = divmod(time_us, 10**6)
        stamp = self.make("builtin_interfaces/msg/Time", sec=sec, nanosec=micro * 1000)
        first = {"seq": 0} if self.version == 1 else {}
        return self.make("std_msgs/msg/Header", **first, stamp=stamp, frame_id=frame)

    def pose(self, xyz: list[float], xyzw: list[float]) -> tuple[Any, Any]:
        point = dict(zip("xyz", map(float, xyz), strict=True))
        turn = dict(zip("xyzw", map(float, xyzw), strict=True))
        return point, self.make("geometry_msgs/msg/Quaternion", **turn)

    def transform(self, time_us: int, parent: str, child: str, xyz: Any, xyzw: Any) -> Any:
        point, turn = self.pose(xyz, xyzw)
        moved = self.make("geometry_msgs/msg/Vector3", **point)
        return self.make(
            "geometry_msgs/msg/TransformStamped",
            header=self.header(time_us, parent),
            child_frame_id=child,
            transform=self.make("geometry_msgs/msg/Transform", translation=moved, rotation=turn),
        )

    def transforms(self, *each: Any) -> Any:
        return self.make("tf2_msgs/msg/TFMessage", transforms=list(each))

    def odometry(self, time_us: int, xyz: Any, xyzw: Any, child: str) -> Any:
        point, turn = self.pose(xyz, xyzw)
        pose = self.make(
            "geometry_msgs/msg/Pose",
            position=self.make("geometry_msgs/msg/Point", **point),
            orientation=turn,
        )
        nothing = self.make("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
        still = self.make("geometry_msgs/msg/Twist", linear=nothing, angular=nothing)
        unknown = np.zeros(36)
        return self.make(
            "nav_msgs/msg/Odometry",
            header=self.header(time_us, "map"),
            child_frame_id=child,
            pose=self.make("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=unknown),
            twist=self.make(
                "geometry_msgs/msg/TwistWithCovariance", twist=still, covariance=unknown
            ),
        )

    def cloud(self, time_us: int, frame: str, rows: np.ndarray, height: int = 1) -> Any:
        """Point cloud of a structured array; ``height`` lines with eight bytes behind each."""
        fields = [
            self.make(
                "sensor_msgs/msg/PointField",
                name=name,
                offset=offset,
                datatype=_datatype(kind),
                count=1,
            )
            for name, (kind, offset) in ((n, f[:2]) for n, f in rows.dtype.fields.items())
        ]
        lines = rows.reshape(height, -1)
        raw = lines.view(np.uint8).reshape(height, -1)
        padded = np.pad(raw, ((0, 0), (0, 8)))
        return self.make(
            "sensor_msgs/msg/PointCloud2",
            header=self.header(time_us, frame),
            height=height,
            width=lines.shape[1],
            fields=fields,
            is_bigendian=False,
            point_step=rows.dtype.itemsize,
            row_step=padded.shape[1],
            data=padded.reshape(-1),
            is_dense=True,
        )

    def compressed(self, time_us: int, frame: str, data: bytes) -> Any:
        return self.make(
            "sensor_msgs/msg/CompressedImage",
            header=self.header(time_us, frame),
            format="jpeg",
            data=np.frombuffer(data, np.uint8),
        )

    def image(self, time_us: int, frame: str, pixels: np.ndarray, encoding: str) -> Any:
        return self.make(
            "sensor_msgs/msg/Image",
            header=self.header(time_us, frame),
            height=pixels.shape[0],
            width=pixels.shape[1],
            encoding=encoding,
            is_bigendian=0,
            step=pixels[0].nbytes,
            data=pixels.reshape(-1),
        )

    def info(self, time_us: int, frame: str, camera: dict[str, Any], **changed: Any) -> Any:
        names = ("D", "K", "R", "P") if self.version == 1 else ("d", "k", "r", "p")
        K = np.array(camera["K"], np.float64)
        lens = camera.get("distortion", {"model": "plumb_bob", "coefficients": [0.0] * 5})
        values = (
            np.array(lens["coefficients"], np.float64),
            K.ravel(),
            np.eye(3).ravel(),
            np.column_stack([K, np.zeros(3)]).ravel(),
        )
        nowhere = {"x_offset": 0, "y_offset": 0, "height": 0, "width": 0, "do_rectify": False}
        given = {
            "header": self.header(time_us, frame),
            "width": camera["size"][0],
            "height": camera["size"][1],
            "distortion_model": lens["model"],
            **dict(zip(names, values, strict=True)),
            "binning_x": 0,
            "binning_y": 0,
            "roi": self.make("sensor_msgs/msg/RegionOfInterest", **nowhere),
        }
        return self.make("sensor_msgs/msg/CameraInfo", **{**given, **changed})


def _datatype(kind: np.dtype) -> int:
    return ["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"].index(kind.str[1:]) + 1


def messages(ros: Ros, scene: Path) -> Iterator[Message]:
    """Messages of a folder scene: static transforms, odometry, clouds, images, calibrations."""
    rig = yaml.safe_load((scene / "rig.yaml").read_text())
    with (scene / "poses.csv").open() as file:
        poses = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    first = int(poses[0]["time"])
    sensors = {"lidar": rig["lidar"]["vehicle_from_lidar"]}
    sensors |= {name + OPTICAL: c["vehicle_from_camera"] for name, c in rig["cameras"].items()}
    static = [
        ros.transform(first, "base_link", frame, at["translation"], at["quaternion_xyzw"])
        for frame, at in sensors.items()
    ]
    yield "/tf_static", first, ros.transforms(*static)
    for row in poses:
        time_us = int(row["time"])
        at = ([row[k] for k in "xyz"], [row[k] for k in ("qx", "qy", "qz", "qw")])
        yield "/odom", time_us, ros.odometry(time_us, *at, "base_link")
        yield "/tf", time_us, ros.transforms(ros.transform(time_us, "map", "base_link", *at))
    for path in sorted((scene / "lidar").iterdir()):
        rows = np.fromfile(path, np.float32).reshape(-1, len(rig["lidar"]["columns"]))
        kinds = [(name, "<f4") for name in rig["lidar"]["columns"]]
        points = rows.view(kinds).reshape(-1)
        yield "/points", int(path.stem), ros.cloud(int(path.stem), "lidar", points)
    for name, camera in rig["cameras"].items():
        for path in sorted((scene / "images" / name).iterdir()):
            time_us = int(path.stem)
            frame = name + OPTICAL
            yield f"/{name}/image", time_us, ros.compressed(time_us, frame, path.read_bytes())
            yield f"/{name}/info", time_us, ros.info(time_us, frame, camera)


def topics(scene: Path, **changed: Any) -> dict[str, Any]:
    """Topics file of such a bag."""
    names = yaml.safe_load((scene / "rig.yaml").read_text())["cameras"]
    return {
        "vehicle": "base_link",
        "poses": {"topic": "/odom"},
        "lidar": {"topic": "/points", "stamp": "compensated"},
        "cameras": {n: {"topic": f"/{n}/image", "info": f"/{n}/info"} for n in names},
        **changed,
    }


def write_bag(path: Path, kind: str, written: Callable[[Ros], Iterator[Message]]) -> Path:
    """Writes messages in order of time; returns the bag, of MCAP the single file."""
    ros = Ros(1 if kind == "ros1" else 2)
    ordered = sorted(written(ros), key=lambda each: each[1])
    if kind == "ros1":
        path = path.with_suffix(".bag")
        writer: Any = Writer1(path)
    else:
        plugin = StoragePlugin.MCAP if kind == "mcap" else StoragePlugin.SQLITE3
        writer = Writer2(path, version=9, storage_plugin=plugin)
    with writer:
        opened: dict[str, Any] = {}
        for topic, time_us, message in ordered:
            name = message.__msgtype__
            if topic not in opened:
                opened[topic] = writer.add_connection(topic, name, typestore=ros.store)
            pack = ros.store.serialize_ros1 if ros.version == 1 else ros.store.serialize_cdr
            writer.write(opened[topic], time_us * 1000 + LATE_NS, pack(message, name))
    return next(path.glob("*.mcap")) if kind == "mcap" else path

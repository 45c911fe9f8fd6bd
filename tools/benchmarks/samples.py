"""Key frames of a nuScenes folder straight from the devkit, to check and measure our reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from clipsweep.projection.frames import Camera, File, Frame, Sweep
from clipsweep.projection.pose import Pose

CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
)


def open_devkit(root: Path) -> Any:
    """Opens a folder that holds one nuScenes version with the devkit."""
    from nuscenes.nuscenes import NuScenes

    (version,) = (path.name for path in root.glob("v1.0-*"))
    return NuScenes(version, str(root), verbose=False)


def frames(devkit: Any, most_sweeps: int = 10) -> list[Frame]:
    """Key frames of all scenes, with up to ``most_sweeps`` sweeps each."""
    found = []
    for scene in devkit.scene:
        token = scene["first_sample_token"]
        while token:
            sample = devkit.get("sample", token)
            found.append(_frame(devkit, scene["name"], sample, most_sweeps))
            token = sample["next"]
    return found


def _frame(devkit: Any, scene: str, sample: Any, most_sweeps: int) -> Frame:
    key = devkit.get("sample_data", sample["data"]["LIDAR_TOP"])
    records = [key]
    while len(records) < most_sweeps and records[-1]["prev"]:
        records.append(devkit.get("sample_data", records[-1]["prev"]))
    sweeps = [
        Sweep(record["timestamp"], _pose(devkit, record)[0], _file(devkit, record))
        for record in records
    ]
    cameras = []
    for name in CAMERAS:
        record = devkit.get("sample_data", sample["data"][name])
        pose, intrinsic = _pose(devkit, record)
        size_hw = (record["height"], record["width"])
        cameras.append(
            Camera(name, record["timestamp"], pose, intrinsic, size_hw, _file(devkit, record))
        )
    return Frame(key["token"], scene, key["timestamp"], tuple(sweeps), tuple(cameras), None)


def _pose(devkit: Any, record: Any) -> tuple[Pose, np.ndarray]:
    """Sensor pose ``global_from_sensor`` at the record's own time, and intrinsics if any."""
    sensor = devkit.get("calibrated_sensor", record["calibrated_sensor_token"])
    ego = devkit.get("ego_pose", record["ego_pose_token"])
    global_from_ego = Pose.from_quaternion(ego["rotation"], ego["translation"])
    ego_from_sensor = Pose.from_quaternion(sensor["rotation"], sensor["translation"])
    return global_from_ego @ ego_from_sensor, np.array(sensor["camera_intrinsic"], np.float64)


def _file(devkit: Any, record: Any) -> File:
    path = Path(devkit.dataroot) / record["filename"]
    return File(path, path.stat().st_size)

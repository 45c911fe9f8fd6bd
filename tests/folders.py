"""Writes nuScenes tables as a folder data set: rig.yaml, poses.csv, lidar/, images/, labels/."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clipsweep.pipeline.datasets.nuscenes import CAMERAS, LIDAR

Save = Callable[[Path, np.ndarray], None]
COLUMNS = ["x", "y", "z", "intensity", "ring"]


def save_bin(path: Path, rows: np.ndarray) -> None:
    rows.tofile(path.with_suffix(".bin"))


def save_npy(path: Path, rows: np.ndarray) -> None:
    np.save(path.with_suffix(".npy"), rows)


def save_fields(path: Path, rows: np.ndarray) -> None:
    """A structured array, whose fields have other places than columns."""
    kinds = [("ring", "u1"), ("z", "<f4"), ("y", "<f4"), ("x", "<f8"), ("intensity", "<u2")]
    fields = np.empty(len(rows), kinds)
    for i, name in enumerate(COLUMNS):
        fields[name] = rows[:, i]
    np.save(path.with_suffix(".npy"), fields)


def save_pcd(path: Path, rows: np.ndarray) -> None:
    import pypcd4

    cloud = pypcd4.PointCloud.from_points(rows, COLUMNS, [np.float32] * len(COLUMNS))
    cloud.save(path.with_suffix(".pcd"))


def save_las(path: Path, rows: np.ndarray) -> None:
    import laspy

    header = laspy.LasHeader(point_format=6, version="1.4")
    header.scales = np.full(3, 0.001)
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = rows[:, :3].T.astype(np.float64)
    cloud.intensity = rows[:, 3].astype(np.uint16)
    cloud.write(path.with_suffix(".las"))


def mount(sensor: dict[str, Any]) -> dict[str, Any]:
    w, x, y, z = sensor["rotation"]
    return {"translation": sensor["translation"], "quaternion_xyzw": [x, y, z, w]}


def folder_from_nuscenes(root: Path, version: str, out: Path, save: Save = save_bin) -> None:
    """Writes every scene of a nuScenes data root as a scene of a folder data set."""
    tables = {path.stem: json.loads(path.read_text()) for path in (root / version).glob("*.json")}
    by = {
        name: {row["token"]: row for row in rows if "token" in row} for name, rows in tables.items()
    }
    channel = {
        row["token"]: by["sensor"][row["sensor_token"]]["channel"]
        for row in tables["calibrated_sensor"]
    }
    scene_of = {row["token"]: by["scene"][row["scene_token"]]["name"] for row in tables["sample"]}
    labels = {row["sample_data_token"]: row["filename"] for row in tables.get("lidarseg", [])}
    for scene in sorted(set(scene_of.values())):
        shots = [row for row in tables["sample_data"] if scene_of[row["sample_token"]] == scene]
        folder = out / scene
        for part in ("lidar", "labels", *(f"images/{name}" for name in CAMERAS)):
            (folder / part).mkdir(parents=True)
        write_poses(
            folder, {row["timestamp"]: by["ego_pose"][row["ego_pose_token"]] for row in shots}
        )
        sensors = {}
        for row in shots:
            name = channel[row["calibrated_sensor_token"]]
            sensors[name] = (by["calibrated_sensor"][row["calibrated_sensor_token"]], row)
            path = root / row["filename"]
            if name == LIDAR:
                save(folder / f"lidar/{row['timestamp']}", np.fromfile(path, "<f4").reshape(-1, 5))
            else:
                shutil.copy(path, folder / f"images/{name}/{row['timestamp']}{path.suffix}")
            if row["token"] in labels:
                ids = np.fromfile(root / labels[row["token"]], np.uint8)
                np.save(folder / f"labels/{row['timestamp']}.npy", ids)
        write_rig(folder, sensors)


def write_poses(folder: Path, poses: dict[int, dict[str, Any]]) -> None:
    lines = ["time,x,y,z,qx,qy,qz,qw"]
    for time_us, pose in sorted(poses.items()):
        w, x, y, z = pose["rotation"]
        lines.append(",".join(map(repr, [time_us, *pose["translation"], x, y, z, w])))
    (folder / "poses.csv").write_text("\n".join(lines) + "\n")


def write_rig(folder: Path, sensors: dict[str, Any]) -> None:
    lidar = {
        "vehicle_from_lidar": mount(sensors[LIDAR][0]),
        "stamp": "compensated",
        "columns": COLUMNS,
    }
    cameras = {
        name: {
            "K": sensors[name][0]["camera_intrinsic"],
            "size": [sensors[name][1]["width"], sensors[name][1]["height"]],
            "vehicle_from_camera": mount(sensors[name][0]),
        }
        for name in CAMERAS
    }
    rig = {"time_unit": "us", "lidar": lidar, "cameras": cameras}
    (folder / "rig.yaml").write_text(yaml.safe_dump(rig, sort_keys=False))

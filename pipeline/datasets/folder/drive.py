"""Scene of a folder data set: its sensors, trajectory, and files by the time in their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from clipsweep.pipeline.artifacts.index import within
from clipsweep.pipeline.datasets.folder.clouds import READERS
from clipsweep.pipeline.datasets.folder.poses import Trajectory, parse_time_us, read_poses
from clipsweep.pipeline.datasets.folder.rig import Rig, read_rig
from clipsweep.projection.errors import BadInput

ROOT_SCENE = "drive"
"""Name of the scene where the data root itself is one."""
_IMAGES = (".jpg", ".jpeg", ".png")
_LABELS = (".label", ".npy")
_PAGE = "configs/data/folder.md describes the format"


@dataclass(frozen=True, eq=False, slots=True)
class Timed:
    """Files of one sensor by their time.

    Attributes:
        time_us: rising [us].
        names: of the files, below the data root.
    """

    time_us: Int64[np.ndarray, " n"]
    names: Sequence[str]

    def nearest(self, time_us: int) -> int:
        """Row of the file nearest to a time; the earlier of two that are as near."""
        return int(np.abs(self.time_us - time_us).argmin())

    def at(self, time_us: int) -> str | None:
        """Name of the file of exactly this time."""
        row = int(np.searchsorted(self.time_us, time_us))
        held = row < len(self.time_us) and self.time_us[row] == time_us
        return self.names[row] if held else None


@dataclass(frozen=True, eq=False, slots=True)
class Drive:
    """Scene of a folder data set: its sensors, trajectory and files.

    Attributes:
        name: of the scene.
        rig: the sensors.
        poses: the trajectory.
        lidar: sweeps, by the time in their names.
        images: of each camera.
        labels: of the points.
    """

    name: str
    rig: Rig
    poses: Trajectory
    lidar: Timed
    images: Mapping[str, Timed]
    labels: Timed

    def sweep_us(self, stamp_us: int) -> int:
        """Time that a sweep's points are seen at [us], of the time in its name.

        It is the stamp; that of the middle of the turn where points as measured have no times.
        """
        lidar = self.rig.lidar
        if lidar.time or lidar.stamp == "compensated":
            return stamp_us
        half_us = round(lidar.turn_s * 5e5)
        return stamp_us + (half_us if lidar.stamp == "start" else -half_us)


def find_scenes(root: Path) -> dict[str, str]:
    """Scenes and their folders below the data root: the root itself, or folders with poses.

    Raises:
        BadInput: there is no such folder.
    """
    if not root.is_dir():
        raise BadInput(root, "no such folder", "set data.root")
    if (root / "poses.csv").exists():
        return {ROOT_SCENE: "."}
    return {path.parent.name: path.parent.name for path in sorted(root.glob("*/poses.csv"))}


def _rig_path(root: Path, folder: str) -> Path:
    """The scene's own rig.yaml, or that of all scenes."""
    own = within(root, f"{folder}/rig.yaml")
    return own if own.is_file() else within(root, "rig.yaml")


def source_files(root: Path, folder: str) -> list[Path]:
    """Text files and folders of a scene.

    Raises:
        BadInput: one that every scene needs is missing, or lies outside of the data root.
    """
    lidar = within(root, f"{folder}/lidar")
    if not lidar.is_dir():
        raise BadInput(lidar, "no such folder", _PAGE)
    images = within(root, f"{folder}/images")
    cameras = sorted(path for path in images.glob("*") if path.is_dir())
    optional = [path for path in (within(root, f"{folder}/labels"),) if path.is_dir()]
    rig = _rig_path(root, folder)
    if not rig.is_file():
        raise BadInput(rig, "is missing", f"describe the sensors there: {_PAGE}")
    return [rig, within(root, f"{folder}/poses.csv"), lidar, *cameras, *optional]


def read_drive(root: Path, name: str, sensor_height_m: float, pose_gap_s: float) -> Drive:
    """Reads the text files of a scene, and lists its other files.

    Args:
        root: the data root.
        name: of the scene, one of ``find_scenes``.
        sensor_height_m: as for ``read_rig``.
        pose_gap_s: as for ``read_poses``.

    Raises:
        BadInput: a file or folder is missing, cannot be used, or is not named by a time.
    """
    folder = find_scenes(root)[name]
    source_files(root, folder)
    rig = read_rig(_rig_path(root, folder), sensor_height_m)
    path = within(root, f"{folder}/poses.csv")
    poses = read_poses(path, rig.time_unit, pose_gap_s, rig.up_from_world)
    lidar = _timed(root, f"{folder}/lidar", tuple(READERS), rig.time_unit)
    if not lidar.names:
        raise BadInput(root / folder / "lidar", "holds no sweep", _PAGE)
    images = {
        camera.name: _timed(root, f"{folder}/images/{camera.name}", _IMAGES, rig.time_unit)
        for camera in rig.cameras
    }
    found = _timed(root, f"{folder}/labels", _LABELS, rig.time_unit)
    drive = Drive(name, rig, poses, lidar, images, found)
    _check_upright(drive)
    _check_labels(root, drive)
    return drive


def _timed(root: Path, folder: str, suffixes: Sequence[str], unit: str) -> Timed:
    """Files of a folder by the time in their names; other files there are refused."""
    path = within(root, folder)
    times: dict[int, str] = {}
    for file in sorted(path.iterdir()) if path.is_dir() else ():
        if file.name.startswith("."):
            continue
        if file.suffix not in suffixes:
            cure = f"its files are <time>{' or <time>'.join(suffixes)}"
            raise BadInput(file, "does not belong into this folder", cure)
        time_us = parse_time_us(file.stem, unit, file)
        if time_us in times:
            raise BadInput(file, f"has the time of {times[time_us]}", "keep one of them")
        times[time_us] = f"{folder}/{file.name}"
    rising = sorted(times)
    return Timed(np.array(rising, np.int64), [times[time_us] for time_us in rising])


def _check_upright(drive: Drive) -> None:
    """Refuses poses in which the LiDAR's z axis points down, as in a north-east-down frame."""
    x, y, z, w = drive.poses.quaternion[0]
    up_z = np.array([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)])
    if up_z @ drive.rig.lidar.vehicle_from_lidar.rotation[:, 2] < 0:
        raise BadInput(
            drive.poses.path,
            "the LiDAR's z axis points down in the world",
            "give up_from_world in rig.yaml where the world is north-east-down, or correct"
            " lidar.vehicle_from_lidar",
        )


def _check_labels(root: Path, drive: Drive) -> None:
    strays = np.setdiff1d(drive.labels.time_us, drive.lidar.time_us)
    if len(strays):
        name = drive.labels.at(int(strays[0]))
        raise BadInput(root / str(name), "has no sweep of its time", "labels are named as sweeps")


def key_rows(drive: Drive, rate_hz: float) -> list[int]:
    """Sweeps that are key frames: those nearest to a steady rate, and those with labels.

    Args:
        drive: the scene.
        rate_hz: key frames a second; 0: every sweep is one.
    """
    times = drive.lidar.time_us
    if not rate_hz:
        return list(range(len(times)))
    number = np.rint((times - times[0]) * 1e-6 * rate_hz).astype(np.int64)
    off = np.abs(times - times[0] - number * 1e6 / rate_hz)
    nearest = {int(n): int(i) for n, i in zip(number[::-1], range(len(times))[::-1], strict=True)}
    for row, n in enumerate(number.tolist()):
        if off[row] < off[nearest[n]]:
            nearest[n] = row
    labelled = np.flatnonzero(np.isin(times, drive.labels.time_us)).tolist()
    return sorted({*nearest.values(), *labelled})

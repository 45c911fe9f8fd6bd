"""Reader of your own car's logs: a folder with rig.yaml, poses.csv, lidar/, images/ and labels/.

The format is described in configs/data/folder.md. ``index`` finds key frames, poses and files;
``convert`` makes of them what the pipeline reads: undistorted images, compensated sweeps.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from jaxtyping import Integer
from pydantic import Field

from clipsweep.pipeline.artifacts.index import MAX_SWEEPS, Row, Skip
from clipsweep.pipeline.artifacts.store import Artifact, digest_files
from clipsweep.pipeline.datasets.checks import (
    check_image,
    check_points,
    check_times,
    chosen_scenes,
    no_scene,
    pin,
)
from clipsweep.pipeline.datasets.folder.convert import Converter
from clipsweep.pipeline.datasets.folder.drive import (
    Drive,
    find_scenes,
    key_rows,
    read_drive,
    source_files,
)
from clipsweep.pipeline.datasets.folder.rig import RigCamera
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, File, Frame, Sweep

if TYPE_CHECKING:
    from clipsweep.pipeline.datasets import DataConfig

_log = logging.getLogger(__name__)

ALL = "all"
"""Split of all scenes."""
_NPY = b"\x93NUMPY"


@dataclass(frozen=True)
class FolderConfig:
    """Settings of the folder reader: key frames, and how far apart sensors may be in time."""

    rate_hz: Annotated[
        float,
        Field(
            ge=0,
            le=100,
            description="key frames a second, beside the sweeps with labels; 0: every sweep [Hz]",
        ),
    ] = 2.0
    max_gap_s: Annotated[
        float,
        Field(
            ge=0,
            le=0.11,
            description="largest time between a key sweep and each camera's nearest image [s]",
        ),
    ] = 0.1
    max_pose_gap_s: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            description="largest time between two poses that is interpolated over [s]",
        ),
    ] = 0.25


def tables(config: DataConfig[FolderConfig]) -> list[Path]:
    """Text files and folders of the chosen scenes that the index is made from.

    Raises:
        BadInput: a scene, a file or a folder is missing.
    """
    root = Path(config.root)
    present = find_scenes(root)
    names = (*config.train, *config.eval)
    scenes = chosen_scenes(root, names, {ALL: sorted(present)}, present)
    if not scenes:
        raise no_scene(root, next(iter(names), ""), present)
    return [path for scene in scenes for path in source_files(root, present[scene])]


def index(config: DataConfig[FolderConfig]) -> Iterator[Row]:
    """Yields one index row for each key frame of the scenes in ``data.train`` and ``data.eval``.

    Images and sweeps are the original files still; see ``convert``. The global frame is the
    world of poses.csv, turned by ``up_from_world``.

    Raises:
        BadInput: no scene is there, or its rig, poses or names of files cannot be used. What is
            wrong with a single frame comes as a row with a ``Skip``.
    """
    root = Path(config.root)
    present = find_scenes(root)
    splits_here = {ALL: sorted(present)}
    train = chosen_scenes(root, config.train, splits_here, present)
    held = chosen_scenes(root, config.eval, splits_here, present)
    for name in dict.fromkeys([*train, *held]):
        drive = _read(config, name)
        for row in key_rows(drive, config.own.rate_hz):
            found, missing = _frame_or_skip(config, drive, row)
            yield Row(found, name in train, name in held, missing)


def convert(config: DataConfig[FolderConfig], rows: Iterable[Row], store: Path) -> Iterator[Row]:
    """Converts the files of index rows that the pipeline cannot read as they are.

    Images of distorted cameras are undistorted, and sweeps become float32 rows at one moment, in
    an artifact of each scene (``converted-<id>/``), where files have the paths of their originals.

    Args:
        config: settings of the data set.
        rows: of ``index``, scene by scene.
        store: folder of all artifacts.

    Raises:
        BadInput: as ``index``. What is wrong with a single frame comes as a row with a ``Skip``.
    """
    for name, group in groupby(rows, lambda row: row.frame.scene):
        started = time.time()
        drive = _read(config, name)
        made = _artifact(config, name, store)
        converter = Converter(
            Path(config.root),
            made.path,
            config.columns,
            config.hash,
            drive.rig,
            drive.poses,
            {},
        )
        _report_skew(drive)
        for row in group:
            yield _converted(config, converter, row)
        if made.path.is_dir():  # nothing was converted otherwise
            made.finish([], config, started)


def labels(data: bytes) -> Integer[np.ndarray, " n"]:
    """Class ids of the points in the bytes of a label file.

    A NumPy array of whole numbers, or SemanticKITTI's .label: the lower 16 bits of each uint32.

    Raises:
        ValueError: it is an array of another kind.
    """
    if not data.startswith(_NPY):
        return (np.frombuffer(data, "<u4") & 0xFFFF).astype(np.uint16)
    ids = np.load(io.BytesIO(data), allow_pickle=False)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"holds {ids.dtype} of the shape {ids.shape}, not one whole number a point"
        )
    return ids


def splits() -> dict[str, tuple[str, ...]]:
    """No official splits: ``all`` stands for every scene that is there, whichever it is."""
    return {}


# --- frames ---------------------------------------------------------------------------------------


def _read(config: DataConfig[FolderConfig], name: str) -> Drive:
    return read_drive(Path(config.root), name, config.sensor_height_m, config.own.max_pose_gap_s)


def _id(drive: Drive, row: int) -> str:
    return f"{drive.name}/{drive.lidar.time_us[row]}"


def _frame_or_skip(
    config: DataConfig[FolderConfig], drive: Drive, row: int
) -> tuple[Frame | Skip, int]:
    """Frame of a key sweep, and how many earlier sweeps it lacks."""
    try:
        return _frame(config, drive, row)
    except BadInput as error:
        return Skip(_id(drive, row), drive.name, str(error)), 0


def _frame(config: DataConfig[FolderConfig], drive: Drive, row: int) -> tuple[Frame, int]:
    root = Path(config.root)
    key = _sweep(config, drive, row)
    earlier = range(row - 1, max(row - MAX_SWEEPS, -1), -1)
    older = [sweep for sweep in (_older(config, drive, each) for each in earlier) if sweep]
    cameras = tuple(_camera(config, drive, camera, key.time_us) for camera in drive.rig.cameras)
    name = drive.labels.at(int(drive.lidar.time_us[row]))
    truth = pin(root, name, config.hash) if name else None
    check_times([key, *older], cameras, _id(drive, row))
    frame = Frame(_id(drive, row), drive.name, key.time_us, (key, *older), cameras, truth)
    return frame, len(earlier) - len(older)


def _sweep(config: DataConfig[FolderConfig], drive: Drive, row: int) -> Sweep:
    file = pin(Path(config.root), drive.lidar.names[row], config.hash)
    time_us = drive.sweep_us(int(drive.lidar.time_us[row]))
    pose = drive.poses.at(time_us) @ drive.rig.lidar.vehicle_from_lidar
    return Sweep(time_us, pose, file)


def _older(config: DataConfig[FolderConfig], drive: Drive, row: int) -> Sweep | None:
    """An earlier sweep, or None where it has no pose or cannot be read."""
    try:
        return _sweep(config, drive, row)
    except BadInput:
        return None


def _camera(
    config: DataConfig[FolderConfig], drive: Drive, camera: RigCamera, time_us: int
) -> Camera:
    """The camera's image nearest to a time, as it was taken."""
    images = drive.images[camera.name]
    folder = drive.poses.path.parent / "images" / camera.name
    if not images.names:
        raise BadInput(folder, "holds no image", "take the camera out of rig.yaml if it has none")
    row = images.nearest(time_us)
    taken_us = int(images.time_us[row])
    file = pin(Path(config.root), images.names[row], config.hash)
    gap_s = abs(taken_us - time_us) * 1e-6
    if gap_s > config.own.max_gap_s:
        problem = f"the image nearest to the sweep of {time_us} us is {gap_s:.3f} s away"
        cure = f"at most data.folder.max_gap_s={config.own.max_gap_s:g}; or on_bad=skip"
        raise BadInput(file.path, problem, cure)
    check_image(file, camera.size_hw)
    pose = drive.poses.at(taken_us) @ camera.vehicle_from_camera
    return Camera(camera.name, taken_us, pose, camera.K, camera.size_hw, file)


# --- conversion -----------------------------------------------------------------------------------


def _artifact(config: DataConfig[FolderConfig], name: str, store: Path) -> Artifact:
    """Artifact of a scene's converted files, named by what they are made from."""
    root = Path(config.root)
    sources = digest_files(source_files(root, find_scenes(root)[name]))
    key = {"scene": name, "sources": sources, "columns": config.columns}
    return Artifact.of(str(store), "converted", key)


def _report_skew(drive: Drive) -> None:
    lidar = drive.rig.lidar
    if lidar.stamp != "compensated" and not lidar.time:
        _log.warning(
            f"{drive.name}: points have no times, so sweeps are not compensated for the motion"
            f" during a turn of {lidar.turn_s:g} s"
        )


def _converted(config: DataConfig[FolderConfig], converter: Converter, row: Row) -> Row:
    """Index row with converted files; older sweeps that cannot be converted count as missing."""
    frame = row.frame
    if isinstance(frame, Skip):
        return row
    try:
        key = converter.sweep(frame.sweeps[0])
        points = check_points(key.points, config.columns, config.min_points)
        _check_count(frame.labels, points)
        cameras = tuple(converter.camera(camera) for camera in frame.cameras)
    except BadInput as error:
        return replace(row, frame=Skip(frame.id, frame.scene, str(error)))
    older = [_older_converted(config, converter, sweep) for sweep in frame.sweeps[1:]]
    sweeps = (key, *(sweep for sweep in older if sweep))
    missing = row.missing_sweeps + older.count(None)
    return replace(
        row, frame=replace(frame, sweeps=sweeps, cameras=cameras), missing_sweeps=missing
    )


def _older_converted(
    config: DataConfig[FolderConfig], converter: Converter, sweep: Sweep
) -> Sweep | None:
    try:
        found = converter.sweep(sweep)
        check_points(found.points, config.columns, 1)
    except BadInput:
        return None
    return found


def _check_count(file: File | None, points: int) -> None:
    if file is None:
        return
    try:
        count = len(labels(file.read()))
    except (ValueError, EOFError) as error:
        raise BadInput(file.path, f"is no label file ({error})") from None
    if count != points:
        raise BadInput(file.path, f"labels {count} points, the sweep has {points}")

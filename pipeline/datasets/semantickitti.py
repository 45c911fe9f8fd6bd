"""Reader of SemanticKITTI and other logs in KITTI's odometry layout: scans, calibration, poses."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from jaxtyping import Float64, UInt16
from pydantic import Field

from clipsweep.pipeline.artifacts.index import MAX_SWEEPS, Row, Skip, within
from clipsweep.pipeline.datasets.checks import (
    check_intrinsics,
    check_points,
    check_times,
    chosen_scenes,
    image_size,
    no_scene,
    pin,
)
from clipsweep.pipeline.datasets.export import Format
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, File, Frame, Sweep
from clipsweep.projection.pose import Pose

if TYPE_CHECKING:
    from clipsweep.pipeline.datasets import DataConfig

SPLITS = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(str(number) for number in range(11, 22)),
}
_PROJECTIONS = {f"image_{i}": f"P{i}" for i in range(4)}
_CALIBRATED = (*_PROJECTIONS.values(), "Tr")
_LABEL_BYTES = 4
_RIG_MAX_M = 20.0
_TIME_MAX_S = 1e10
_UNPACK = "unpack the data set's archive of it again"


@dataclass(frozen=True)
class SemanticKittiConfig:
    """Settings of the SemanticKITTI reader: which camera to use."""

    camera: Annotated[
        Literal["image_0", "image_1", "image_2", "image_3", ""],
        Field(description="camera, projected by P0 to P3; empty: none, to use a student"),
    ] = "image_2"


@dataclass(frozen=True, eq=False, slots=True)
class _Drive:
    """Sequence of SemanticKITTI: scans, calibration, poses and times.

    Attributes:
        name: number of the sequence.
        scans: numbers of the scans on disk.
        labelled: number of the last scan with a label file; -1: none has one.
        calibration: calib.txt's matrices of each camera and of the LiDAR.
        poses: of the first camera in its own frame at the first scan.
        times_s: of the scans [s].
    """

    name: str
    scans: frozenset[int]
    labelled: int
    calibration: Mapping[str, Float64[np.ndarray, "12"]]
    poses: Float64[np.ndarray, "n 12"]
    times_s: Float64[np.ndarray, "n 1"]

    @property
    def folder(self) -> str:
        return f"sequences/{self.name}"


def tables(config: DataConfig[SemanticKittiConfig]) -> list[Path]:
    """Text files and folders of SemanticKITTI that the index is made from.

    Raises:
        BadInput: a sequence, file or camera is missing, or lies outside of the data root.
    """
    names = (*config.train, *config.eval)
    sequences = _sequences(config, names)
    if not sequences:
        folder = Path(config.root) / "sequences"
        if not folder.is_dir():
            raise BadInput(folder, "no such folder", "set data.root")
        raise no_scene(folder, next(iter(names), ""), _present(folder), "sequence")
    return [path for name in sequences for path in _sources(config, name)]


def index(config: DataConfig[SemanticKittiConfig]) -> Iterator[Row]:
    """Yields one index row for each scan of the sequences in ``data.train`` and ``data.eval``.

    Rows come sequence by sequence.

    A sequence may be labelled up to some scan only: scans after its last label file are frames
    without labels.

    ``poses.txt`` places the first (grey, left) camera, ``Tr`` brings the LiDAR into its frame, and
    ``P0`` .. ``P3`` are ``K [I | t]`` with the other cameras' offsets t. The global frame is that
    of a sequence's first LiDAR pose: ``global_from_lidar = inv(Tr) @ pose @ Tr``. A scan is taken
    as moved to the moment of its image, as KITTI's are.

    Raises:
        BadInput: no sequence is there, or a text file or camera is missing, malformed
            or outside of the data root. What is wrong with a single scan, also that it is missing,
            comes as a row with a ``Skip``.
    """
    train, held = (_sequences(config, names) for names in (config.train, config.eval))
    for name in dict.fromkeys([*train, *held]):
        drive = _read_drive(config, name)
        read = dict[int, Sweep]()
        for number in sorted(drive.scans.union(range(len(drive.poses)))):
            earlier = range(number - 1, max(number - MAX_SWEEPS, -1), -1)
            older = [read[n] for n in earlier if n in read]
            found: Frame | Skip = Skip(_id(drive, number), name, "scan is missing")
            try:
                if number in drive.scans:
                    read[number] = _sweep(config, drive, number)
                    found = _frame(config, drive, number, (read[number], *older))
            except BadInput as error:
                found = Skip(_id(drive, number), name, str(error))
            yield Row(found, name in train, name in held, len(earlier) - len(older))


def labels(data: bytes) -> UInt16[np.ndarray, " n"]:
    """Raw class ids of the points in the bytes of a SemanticKITTI label file.

    The lower 16 bits; the instance above them is left out.
    """
    return (np.frombuffer(data, "<u4") & 0xFFFF).astype(np.uint16)


def splits() -> dict[str, tuple[str, ...]]:
    """Sequences of each official SemanticKITTI split."""
    return SPLITS


def _present(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("*") if path.is_dir()}


def _sequences(config: DataConfig[SemanticKittiConfig], names: Sequence[str]) -> list[str]:
    """Sequences on disk that splits and names stand for."""
    folder = within(Path(config.root), "sequences")
    numbers = [name if name in SPLITS else name.zfill(2) for name in names]
    return chosen_scenes(folder, numbers, SPLITS, _present(folder), "sequence")


def _sources(config: DataConfig[SemanticKittiConfig], name: str) -> list[Path]:
    """Source files and folders of a sequence."""
    root = Path(config.root)
    sequence = f"sequences/{name}"
    camera = config.own.camera
    needed = [
        within(root, f"{sequence}/{part}")
        for part in ("calib.txt", "poses.txt", "times.txt", "velodyne")
    ]
    for path in needed:
        if not path.exists():
            raise BadInput(path, "is missing", _UNPACK)
    optional = [within(root, f"{sequence}/{part}") for part in ("labels", camera) if part]
    if camera and not optional[-1].is_dir():
        present = (
            ", ".join(part for part in _PROJECTIONS if (root / sequence / part).is_dir())
            or "no camera"
        )
        raise BadInput(
            optional[-1],
            "this camera is missing",
            f"it holds {present}: set data.semantickitti.camera",
        )
    return [*needed, *(path for path in optional if path.is_dir())]


def _read_drive(config: DataConfig[SemanticKittiConfig], name: str) -> _Drive:
    folder = Path(config.root) / "sequences" / name
    _sources(config, name)
    scans = _numbered(folder / "velodyne", ".bin")
    labelled = _numbered(folder / "labels", ".label")
    poses = _numbers(folder / "poses.txt", 12)
    times_s = _numbers(folder / "times.txt", 1)
    if not scans:
        raise BadInput(folder / "velodyne", "holds no scan", _UNPACK)
    if not labelled and os.path.lexists(folder / "labels") and name not in SPLITS["test"]:
        raise BadInput(folder / "labels", "holds no label", f"{_UNPACK}, or remove this folder")
    if len(poses) != len(times_s):
        raise BadInput(
            folder, f"poses.txt has {len(poses)} rows, times.txt has {len(times_s)}", _UNPACK
        )
    return _Drive(
        name,
        scans,
        max(labelled, default=-1),
        _read_calibration(folder / "calib.txt"),
        poses,
        times_s,
    )


def _numbers(path: Path, columns: int) -> Float64[np.ndarray, "n columns"]:
    """Parses the numbers of a text file (calibration, poses, times), so many a line."""
    rows = [_floats(line.split(), columns, f"{path}:{i}") for i, line in enumerate(_lines(path), 1)]
    return np.stack(rows) if rows else np.empty((0, columns))


def _read_calibration(path: Path) -> dict[str, Float64[np.ndarray, "12"]]:
    matrices: dict[str, str] = {}
    for line in _lines(path):
        name, colon, numbers = line.partition(":")
        if colon and name in matrices:
            raise BadInput(path, f"has {name} twice", "keep the right one")
        if colon:
            matrices[name] = numbers
    for name in _CALIBRATED:
        if name not in matrices:
            raise BadInput(
                path, f"has no {name}", f"it needs {', '.join(_CALIBRATED)}, 12 numbers each"
            )
    return {name: _floats(matrices[name].split(), 12, f"{path}, {name}") for name in _CALIBRATED}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, f"cannot be read ({error})") from None


def _floats(words: Sequence[str], count: int, where: str) -> Float64[np.ndarray, " count"]:
    try:
        numbers = np.array(words, np.float64)
    except ValueError:
        raise BadInput(
            where, f"{' '.join(words)[:80]!r} contains text that is not a number"
        ) from None
    if len(numbers) != count:
        raise BadInput(where, f"holds {len(numbers)} numbers instead of {count}")
    return numbers


def _numbered(folder: Path, suffix: str) -> frozenset[int]:
    """Scan numbers of the files in a folder; none if there is no such folder."""
    names = sorted(path.name for path in folder.glob(f"*{suffix}"))
    odd = [name for name in names if not re.fullmatch(rf"\d{{6}}\{suffix}", name, re.ASCII)]
    if odd:
        raise BadInput(
            folder / odd[0],
            "is not named like a scan",
            f"scans are 000000{suffix}, 000001{suffix}, ...",
        )
    return frozenset(int(name[:6]) for name in names)


def _id(drive: _Drive, number: int) -> str:
    return f"{drive.name}/{number:06d}"


def _sweep(config: DataConfig[SemanticKittiConfig], drive: _Drive, number: int) -> Sweep:
    file = pin(Path(config.root), f"{drive.folder}/velodyne/{number:06d}.bin", config.hash)
    if number >= len(drive.poses):
        raise BadInput(
            file.path, f"has no row in poses.txt, which ends after {len(drive.poses)}", _UNPACK
        )
    check_points(file, config.columns, 1)
    time_s = float(drive.times_s[number, 0])
    if not 0 <= time_s < _TIME_MAX_S:
        raise BadInput(
            file.path,
            f"its time in times.txt is {time_s:g} s",
            f"it must be in 0 .. {_TIME_MAX_S:g} s",
        )
    cam_from_lidar = _cam_from_lidar(drive)
    lidar_from_cam = cam_from_lidar.inverse()
    return Sweep(round(time_s * 1e6), lidar_from_cam @ _pose(drive, number) @ cam_from_lidar, file)


def _frame(
    config: DataConfig[SemanticKittiConfig], drive: _Drive, number: int, sweeps: tuple[Sweep, ...]
) -> Frame:
    points = check_points(sweeps[0].points, config.columns, config.min_points)
    cameras = (_camera(config, drive, number, sweeps[0].time_us),) if config.own.camera else ()
    labels = _labels(config, drive, number, points)
    check_times(sweeps, cameras, _id(drive, number))
    return Frame(_id(drive, number), drive.name, sweeps[0].time_us, sweeps, cameras, labels)


def _camera(
    config: DataConfig[SemanticKittiConfig], drive: _Drive, number: int, time_us: int
) -> Camera:
    file = pin(
        Path(config.root), f"{drive.folder}/{config.own.camera}/{number:06d}.png", config.hash
    )
    name = _PROJECTIONS[config.own.camera]
    projection = drive.calibration[name].reshape(3, 4)
    K = np.ascontiguousarray(projection[:, :3])
    where = f"{drive.folder}/calib.txt, {name}"
    check_intrinsics(K, where)
    first_from_cam = _mounted(
        np.column_stack([np.eye(3), -np.linalg.solve(K, projection[:, 3])]), where
    )
    global_from_first = _cam_from_lidar(drive).inverse() @ _pose(drive, number)
    return Camera(
        config.own.camera, time_us, global_from_first @ first_from_cam, K, image_size(file), file
    )


def _cam_from_lidar(drive: _Drive) -> Pose:
    return _mounted(drive.calibration["Tr"], f"{drive.folder}/calib.txt, Tr")


def _mounted(matrix: Float64[np.ndarray, "..."], where: str) -> Pose:
    """Extrinsics: pose of one sensor seen from another, of 12 numbers.

    Refuses sensors too far apart to be on one car.
    """
    try:
        pose = Pose.from_matrix(matrix.ravel().tolist())
    except ValueError as error:
        raise BadInput(where, str(error)) from None
    away_m = float(np.linalg.norm(pose.translation))
    if away_m > _RIG_MAX_M:
        raise BadInput(
            where,
            f"the sensor is {away_m:g} m away (at most {_RIG_MAX_M:g})",
            "offsets are in metres",
        )
    return pose


def _pose(drive: _Drive, number: int) -> Pose:
    """Ego pose of the first camera at a scan, in its own frame at the first scan."""
    try:
        return Pose.from_matrix(drive.poses[number].tolist())
    except ValueError as error:
        raise BadInput(f"{drive.folder}/poses.txt:{number + 1}", str(error)) from None


def _labels(
    config: DataConfig[SemanticKittiConfig], drive: _Drive, number: int, points: int
) -> File | None:
    if number > drive.labelled:
        return None
    file = pin(Path(config.root), f"{drive.folder}/labels/{number:06d}.label", config.hash)
    if file.bytes != _LABEL_BYTES * points:
        raise BadInput(
            file.path, f"labels {file.bytes / _LABEL_BYTES:g} points, the scan has {points}"
        )
    return file


# --- submission to the benchmark ------------------------------------------------------------------

_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same labels give the same bytes


def _label_file(_split: str, frame: Frame) -> str:
    if not re.fullmatch(r"\d{2}/\d{6}", frame.id):
        raise BadInput(
            frame.id, "is no sequence and scan of SemanticKITTI", "give the format of your data set"
        )
    return f"sequences/{frame.scene}/predictions/{frame.id[3:]}.label"


def _seal(folder: Path, _split: str) -> None:
    """Packs ``submission.zip`` with the directories that the SemanticKITTI server asks for."""
    with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [folder / "sequences", *sorted((folder / "sequences").rglob("*"))]:
            name = path.relative_to(folder).as_posix()
            info = zipfile.ZipInfo(f"{name}/" if path.is_dir() else name, _ZIP_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, b"" if path.is_dir() else path.read_bytes())


PREDICTIONS = Format(_label_file, "<u4", range(10, 260), _seal)
"""``sequences/{XX}/predictions/{NNNNNN}.label`` and ``submission.zip`` of them.

A user may add a description to the zip.
"""

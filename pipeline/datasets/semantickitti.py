"""Reads SemanticKITTI (and any log in KITTI's odometry layout) into rows of the index."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64, UInt16

from pipeline.datasets.checks import check_intrinsics, check_points, check_times, image_size, pin
from pipeline.datasets.rows import MAX_SWEEPS, Row, Skip
from projection.errors import BadInput
from projection.frames import Camera, File, Frame, Sweep
from projection.pose import Pose

if TYPE_CHECKING:
    from pipeline.datasets import DataConfig

SPLITS = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(str(number) for number in range(11, 22)),
}
_PROJECTIONS = {f"image_{i}": f"P{i}" for i in range(4)}
_CALIBRATED = (*_PROJECTIONS.values(), "Tr")
_LABEL_BYTES = 4


@dataclass(frozen=True, eq=False, slots=True)
class _Drive:
    """One sequence: its name and what its three text files say, a row for each scan in the last two."""

    name: str
    calibration: Mapping[str, Float64[np.ndarray, "12"]]
    poses: Float64[np.ndarray, "n 12"]
    times_s: Float64[np.ndarray, "m 1"]

    @property
    def folder(self) -> str:
        return f"sequences/{self.name}"


def tables(config: DataConfig) -> list[Path]:
    """The text files and folders that the index is made from.

    Raises:
        BadInput: a sequence, file or camera is missing.
    """
    folders = [Path(config.root) / "sequences" / name for name in _sequences(config, (*config.train, *config.eval))]
    return [path for folder in folders for path in _sources(folder, config.camera)]


def index(config: DataConfig) -> Iterator[Row]:
    """Yields one row for each scan of the sequences in ``data.train`` and ``data.eval``, sequence by sequence.

    ``poses.txt`` places the first (grey, left) camera, ``Tr`` brings the LiDAR into its frame, and ``P0`` .. ``P3`` are
    ``K [I | t]`` with the other cameras' offsets t. The global frame is that of a sequence's first LiDAR pose:
    ``global_from_lidar = inv(Tr) @ pose @ Tr``. A scan is taken as moved to the moment of its image, as KITTI's are.

    Raises:
        BadInput: a split or sequence gives nothing, or a text file or camera is missing or malformed. What is wrong
            with a single scan comes as a row with a ``Skip``.
    """
    train, held = (_sequences(config, names) for names in (config.train, config.eval))
    for name in dict.fromkeys([*train, *held]):
        drive, read = _read_drive(config, name), dict[int, Sweep]()
        for number in _scans(Path(config.root) / drive.folder / "velodyne"):
            earlier = range(number - 1, max(number - MAX_SWEEPS, -1), -1)
            older = [read[n] for n in earlier if n in read]
            try:
                read[number] = _sweep(config, drive, number)
                found: Frame | Skip = _frame(config, drive, number, (read[number], *older))
            except BadInput as error:
                found = Skip(_id(drive, number), name, str(error))
            yield Row(found, name in train, name in held, len(earlier) - len(older))


def labels(data: bytes) -> UInt16[np.ndarray, " n"]:
    """Raw ids of the points in the bytes of a label file: the lower 16 bits; the instance above them is left out."""
    return (np.frombuffer(data, "<u4") & 0xFFFF).astype(np.uint16)


def _sequences(config: DataConfig, names: Sequence[str]) -> list[str]:
    """Names of the sequences on disk that splits and names stand for; a split's others are passed over."""
    folder = Path(config.root) / "sequences"
    present = {path.name for path in folder.glob("*") if path.is_dir()}
    chosen: list[str] = []
    for name in names:
        found = [sequence for sequence in SPLITS.get(name, (name.zfill(2),)) if sequence in present]
        if not found:
            held = f"it holds {', '.join(sorted(present)[:5]) or 'none'}" + (" ..." if len(present) > 5 else "")
            raise BadInput(folder, f"has no sequence of {name!r}", held)
        chosen += found
    return list(dict.fromkeys(chosen))


def _sources(folder: Path, camera: str) -> list[Path]:
    """The files and folders of a sequence."""
    if camera and camera not in _PROJECTIONS:
        raise BadInput("data.camera", f"{camera!r} is no camera", f"give one of {', '.join(_PROJECTIONS)}")
    needed = [folder / name for name in ("calib.txt", "poses.txt", "times.txt", "velodyne")]
    for path in needed:
        if not path.exists():
            raise BadInput(path, "is missing", "unpack the data set's archive of it again")
    if camera and not (folder / camera).is_dir():
        present = ", ".join(name for name in _PROJECTIONS if (folder / name).is_dir()) or "no camera"
        raise BadInput(folder / camera, "this camera is missing", f"it holds {present}: set data.camera")
    optional = [folder / "labels", *([folder / camera] if camera else [])]
    return [*needed, *(path for path in optional if path.is_dir())]


def _read_drive(config: DataConfig, name: str) -> _Drive:
    folder = Path(config.root) / "sequences" / name
    _sources(folder, config.camera)
    poses, times_s = _numbers(folder / "poses.txt", 12), _numbers(folder / "times.txt", 1)
    return _Drive(name, _read_calibration(folder / "calib.txt"), poses, times_s)


def _numbers(path: Path, columns: int) -> Float64[np.ndarray, "n columns"]:
    """The numbers of a text file, so many a line."""
    rows = [_floats(line.split(), columns, f"{path}:{i}") for i, line in enumerate(_lines(path), 1)]
    return np.stack(rows) if rows else np.empty((0, columns))


def _read_calibration(path: Path) -> dict[str, Float64[np.ndarray, "12"]]:
    named = dict(line.split(":", 1) for line in _lines(path) if ":" in line)
    for name in _CALIBRATED:
        if name not in named:
            raise BadInput(path, f"has no {name}", f"it needs {', '.join(_CALIBRATED)}, 12 numbers each")
    return {name: _floats(named[name].split(), 12, f"{path}, {name}") for name in _CALIBRATED}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().strip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(path, f"cannot be read ({error})") from None


def _floats(words: Sequence[str], count: int, where: str) -> Float64[np.ndarray, " count"]:
    try:
        numbers = np.array(words, np.float64)
    except ValueError:
        raise BadInput(where, f"{' '.join(words)[:80]!r} holds something else than numbers") from None
    if len(numbers) != count:
        raise BadInput(where, f"holds {len(numbers)} numbers instead of {count}")
    return numbers


def _scans(folder: Path) -> list[int]:
    """Numbers of the scans in a folder, rising."""
    names = sorted(path.name for path in folder.glob("*.bin"))
    odd = [name for name in names if not re.fullmatch(r"\d{6}\.bin", name)]
    if odd:
        raise BadInput(folder / odd[0], "is not named like a scan", "scans are 000000.bin, 000001.bin, ...")
    return [int(name[:6]) for name in names]


def _id(drive: _Drive, number: int) -> str:
    return f"{drive.name}/{number:06d}"


def _sweep(config: DataConfig, drive: _Drive, number: int) -> Sweep:
    file = pin(Path(config.root), f"{drive.folder}/velodyne/{number:06d}.bin", config.hash)
    for name, rows in (("poses.txt", drive.poses), ("times.txt", drive.times_s)):
        if number >= len(rows):
            raise BadInput(file.path, f"has no row in {name}, which ends after {len(rows)}", "copy the file again")
    check_points(file, config.columns, 1)
    time_s = float(drive.times_s[number, 0])
    if not np.isfinite(time_s):
        raise BadInput(file.path, f"its time in times.txt is {time_s}")
    cam_from_lidar = _calibrated(drive, "Tr")
    lidar_from_cam = cam_from_lidar.inverse()
    return Sweep(round(time_s * 1e6), lidar_from_cam @ _pose(drive, number) @ cam_from_lidar, file)


def _frame(config: DataConfig, drive: _Drive, number: int, sweeps: tuple[Sweep, ...]) -> Frame:
    points = check_points(sweeps[0].points, config.columns, config.min_points)
    cameras = (_camera(config, drive, number, sweeps[0].time_us),) if config.camera else ()
    labels = _labels(config, drive, number, points)
    check_times(sweeps, cameras, _id(drive, number))
    return Frame(_id(drive, number), drive.name, sweeps[0].time_us, sweeps, cameras, labels)


def _camera(config: DataConfig, drive: _Drive, number: int, time_us: int) -> Camera:
    file = pin(Path(config.root), f"{drive.folder}/{config.camera}/{number:06d}.png", config.hash)
    name = _PROJECTIONS[config.camera]
    projection = drive.calibration[name].reshape(3, 4)
    K = np.ascontiguousarray(projection[:, :3])
    check_intrinsics(K, f"{drive.folder}/calib.txt, {name}")
    first_from_cam = Pose(np.eye(3), -np.linalg.solve(K, projection[:, 3]))
    global_from_first = _calibrated(drive, "Tr").inverse() @ _pose(drive, number)
    return Camera(config.camera, time_us, global_from_first @ first_from_cam, K, image_size(file), file)


def _calibrated(drive: _Drive, name: str) -> Pose:
    try:
        return Pose.from_matrix(drive.calibration[name].tolist())
    except ValueError as error:
        raise BadInput(f"{drive.folder}/calib.txt, {name}", str(error)) from None


def _pose(drive: _Drive, number: int) -> Pose:
    """Pose of the first camera at a scan in its own frame at the first scan."""
    try:
        return Pose.from_matrix(drive.poses[number].tolist())
    except ValueError as error:
        raise BadInput(f"{drive.folder}/poses.txt:{number + 1}", str(error)) from None


def _labels(config: DataConfig, drive: _Drive, number: int, points: int) -> File | None:
    name = f"{drive.folder}/labels/{number:06d}.label"
    if not (Path(config.root) / name).exists():
        return None
    file = pin(Path(config.root), name, config.hash)
    if file.bytes != _LABEL_BYTES * points:
        raise BadInput(file.path, f"labels {file.bytes / _LABEL_BYTES:g} points, the scan has {points}")
    return file

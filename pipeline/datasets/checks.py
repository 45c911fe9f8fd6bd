"""Validation of files, calibration, timestamps and poses before they enter the index.

All raise BadInput.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from clipsweep.pipeline.artifacts.index import within
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, File, Sweep

_SPEED_MAX_M_S = 80.0
_CAMERA_GAP_MAX_US = 110_000
_PIXELS_MAX = 64_000_000
_FOCAL_MIN_PX = 1.0
_INTRINSIC_MAX_PX = 1e6
_TIME_MAX_US = 10**16
_END_OF_IMAGE = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}


def pin(root: Path, name: str, hash_bytes: bool) -> File:
    """Records a file of the data set: present size, and sha256 if asked for."""
    path = within(root, name)
    try:
        status = path.stat()
    except OSError as error:
        broken = isinstance(error, FileNotFoundError) and path.is_symlink()
        problem = "is a broken link" if broken else f"cannot be read ({error.strerror})"
        raise BadInput(path, problem, "copy the file again") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadInput(path, "is not a file", "copy the file again")
    if status.st_size == 0:
        raise BadInput(path, "is empty", "copy the file again")
    return File(
        path, status.st_size, hashlib.sha256(path.read_bytes()).hexdigest() if hash_bytes else ""
    )


def chosen_scenes(
    where: Path,
    names: Iterable[str],
    splits: Mapping[str, Sequence[str]],
    present: Iterable[str],
    what: str = "scene",
) -> list[str]:
    """Scenes on disk that ``data.train`` or ``data.eval`` names, by splits or one by one.

    A split's scenes that are not there are passed over, which may be all of them.

    Raises:
        BadInput: a name is no split, and no scene that is there.
    """
    here = set(present)
    chosen: list[str] = []
    for name in names:
        if name not in here and name not in splits:
            raise no_scene(where, name, here, what)
        wanted = [name] if name in here else splits[name]
        chosen += [scene for scene in wanted if scene in here]
    return list(dict.fromkeys(chosen))


def no_scene(
    where: Path,
    name: str,
    present: Iterable[str],
    what: str = "scene",
    keys: str = "data.train={0} (and data.eval)",
) -> BadInput:
    """Error of a split without any scene in the data root: names those that are there."""
    held = sorted(present)
    if not held:
        return BadInput(where, f"has no {what} of {name!r}", "it holds none")
    shown = ", ".join(held[:5]) + (" ..." if len(held) > 5 else "")
    cure = f"it holds {shown}: set {keys.format(held[0])}"
    return BadInput(where, f"has no {what} of {name!r}", cure)


def check_points(file: File, columns: int, fewest: int) -> int:
    """Number of points in a sweep file, from its size."""
    points, rest = divmod(file.bytes, 4 * columns)
    if rest:
        raise BadInput(
            file.path,
            f"{file.bytes} bytes are no whole number of {columns}-float points",
            "copy the file again",
        )
    if points < fewest:
        raise BadInput(file.path, f"holds {points} points, fewer than data.min_points={fewest}")
    return points


def image_size(file: File) -> tuple[int, int]:
    """Image size from the file header, height and width [px].

    Refuses a file that is no image, or that is truncated.
    """
    try:
        with Image.open(file.path, formats=tuple(_END_OF_IMAGE)) as image:
            width, height = image.size
            end = _END_OF_IMAGE[image.format or ""]
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        raise BadInput(file.path, "is no JPEG or PNG image", "copy the file again") from None
    if height * width > _PIXELS_MAX:
        raise BadInput(file.path, f"is {width}x{height} pixels, more than {_PIXELS_MAX}")
    with file.path.open("rb") as stream:
        stream.seek(-min(file.bytes, 64), 2)
        if end not in stream.read():
            raise BadInput(
                file.path, "is truncated (no end-of-image marker)", "copy the file again"
            )
    return height, width


def check_image(file: File, size_hw: tuple[int, int]) -> None:
    """Validates an image file: readable header, and the size that the table gives."""
    height, width = image_size(file)
    if (height, width) != size_hw:
        raise BadInput(
            file.path, f"is {width}x{height} pixels, the table has {size_hw[1]}x{size_hw[0]}"
        )


def check_intrinsics(K: np.ndarray, where: str) -> None:
    """Validates camera intrinsics: refuses a matrix that no pinhole camera has."""
    usual = K.shape == (3, 3) and (np.abs(K) <= _INTRINSIC_MAX_PX).all()  # False for nan too
    if not usual or min(K[0, 0], K[1, 1]) < _FOCAL_MIN_PX:
        raise BadInput(
            where,
            f"camera_intrinsic {K.tolist()} is not a camera matrix",
            f"focal lengths are {_FOCAL_MIN_PX:g} to {_INTRINSIC_MAX_PX:g} px",
        )
    if not np.allclose(K[2], [0, 0, 1]) or K[1, 0] != 0:
        raise BadInput(
            where, f"camera_intrinsic {K.tolist()} has a second row or third row of another form"
        )


def checked_time(time_us: Any, where: str) -> int:
    """Validates a timestamp of a table: a whole number of microseconds."""
    number = type(time_us) in (int, float)
    if not number or not 0 <= time_us < _TIME_MAX_US or time_us % 1:  # refuses nan too
        cure = f"it must be a whole number of microseconds, below {_TIME_MAX_US:.0e}"
        raise BadInput(where, f"timestamp {str(time_us)[:40]} is none", cure)
    return int(time_us)


def check_times(sweeps: Sequence[Sweep], cameras: Sequence[Camera], where: str) -> None:
    """Validates timestamps: sweeps go back in time without jumps, cameras near the key sweep."""
    for newer, older in pairwise(sweeps):
        step_s = (newer.time_us - older.time_us) * 1e-6
        if step_s <= 0:
            raise BadInput(
                where,
                f"sweep times do not rise: {older.time_us} us comes before {newer.time_us} us",
            )
        way_m = newer.global_from_lidar.translation - older.global_from_lidar.translation
        speed = float(np.linalg.norm(way_m)) / step_s
        if speed > _SPEED_MAX_M_S:
            raise BadInput(
                where,
                f"the car jumps at {speed:.0f} m/s (at most {_SPEED_MAX_M_S:.0f}) between sweeps",
            )
    for camera in cameras:
        gap_us = abs(camera.time_us - sweeps[0].time_us)
        if gap_us > _CAMERA_GAP_MAX_US:
            raise BadInput(
                where,
                f"{camera.name} is {gap_us / 1000:.0f} ms from the key sweep (at most 110 ms)",
            )

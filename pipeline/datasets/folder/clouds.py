"""Point clouds of a folder data set: reads .bin, .npy, .pcd and .las, with a time for each point.

Points keep the order of the file, which labels count in.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from clipsweep.pipeline.datasets.folder.rig import UNITS_PER_S, RigLidar
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import File

INSTALL = 'pip install -e ".[logs]"'
_AGAIN = "copy the file again"
_TURN_MAX_S = 1.0


@dataclass(frozen=True, eq=False, slots=True)
class RawCloud:
    """Sweep as a file holds it.

    Attributes:
        xyz: positions in the LiDAR's frame at each point's time [m].
        intensity: return strength, on the file's scale.
        time_s: each point's time less that in the file's name [s]; None: the file has none.
    """

    xyz: Float32[np.ndarray, "n 3"]
    intensity: Float32[np.ndarray, " n"]
    time_s: Float64[np.ndarray, " n"] | None


def read_cloud(file: File, lidar: RigLidar, time_us: int) -> RawCloud:
    """Reads the points of a sweep file, by its ending.

    Args:
        file: the file.
        lidar: which column or field is what.
        time_us: time in the file's name [us], which an ``epoch`` of point times is compared with.

    Raises:
        BadInput: the file is damaged, has no such column, or times that are not those of a turn;
            or a library is missing that reads it.
    """
    fields = READERS[file.path.suffix](file, lidar.columns)
    xyz = np.column_stack([_field(file, fields, axis) for axis in "xyz"]).astype(np.float32)
    if not len(xyz):
        raise BadInput(file.path, "holds no point", _AGAIN)
    intensity = np.zeros(len(xyz), np.float32)
    if lidar.intensity:
        intensity = _field(file, fields, lidar.intensity).astype(np.float32)
    if not lidar.time:
        return RawCloud(xyz, intensity, None)
    times = _field(file, fields, lidar.time)
    return RawCloud(
        xyz,
        intensity,
        since_stamp(file.path, times, time_us, lidar.time_unit, lidar.time_from, lidar.stamp),
    )


def _field(file: File, fields: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in fields:
        raise BadInput(
            file.path,
            f"has no column {name!r}",
            f"it has {', '.join(fields)}: correct lidar in rig.yaml",
        )
    return fields[name]


def since_stamp(
    where: object, times: np.ndarray, time_us: int, unit: str, time_from: str, stamp: str
) -> Float64[np.ndarray, " n"]:
    """Times of points less that of their sweep [s].

    Points without a finite time count as taken at the stamp: they have no position either.

    Args:
        where: the file, or the topic.
        times: of the points, as they are recorded.
        time_us: stamp of the sweep [us].
        unit: of the times.
        time_from: what they count from: the ``stamp``, the ``first`` point, or the clock's
            ``epoch``.
        stamp: whether that is the ``start`` or the ``end`` of a turn.

    Raises:
        BadInput: a point is taken over a second from the stamp.
    """
    units = UNITS_PER_S[unit]
    if time_from == "epoch":
        since = _since_epoch(times, units, time_us)
    else:
        since = times.astype(np.float64) / units
    finite = np.isfinite(since)
    if time_from == "first" and finite.any():
        whole = since[finite]
        since -= whole.max() if stamp == "end" else whole.min()
    since[~finite] = 0.0
    most = float(np.abs(since).max())
    if most > _TURN_MAX_S:
        problem = f"has points {most:.3g} s from the time in its name"
        raise BadInput(where, problem, "correct lidar.time, time_unit and time_from in rig.yaml")
    return since


def _since_epoch(times: np.ndarray, units: int, time_us: int) -> Float64[np.ndarray, " n"]:
    """Times on the clock less one of microseconds [s]; whole units first, for a float's digits."""
    whole, rest = divmod(time_us * units, 10**6)
    exact = times.astype(np.int64 if times.dtype.kind in "iu" else np.float64)
    return (exact - whole).astype(np.float64) / units - rest / (10**6 * units)


# --- formats --------------------------------------------------------------------------------------


def _read_bin(file: File, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    data = file.read()
    if len(data) % (4 * len(columns)):
        problem = f"{len(data)} bytes are no whole number of {len(columns)}-float points"
        raise BadInput(file.path, problem, f"{_AGAIN}, or correct lidar.columns in rig.yaml")
    return _by_column(np.frombuffer(data, "<f4").reshape(-1, len(columns)), columns)


def _read_npy(file: File, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    try:
        array = np.load(io.BytesIO(file.read()), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError) as error:
        raise BadInput(file.path, f"is no NumPy array ({_first_line(error)})", _AGAIN) from None
    if not isinstance(array, np.ndarray):
        raise BadInput(file.path, "is an archive of arrays", "save one array with np.save")
    if array.dtype.names and array.ndim == 1:
        return {name: _numeric(file, array[name]) for name in array.dtype.names}
    if array.ndim != 2 or array.shape[1] != len(columns):
        problem = f"has the shape {array.shape}"
        cure = f"{len(columns)} columns are named by lidar.columns in rig.yaml"
        raise BadInput(file.path, problem, cure)
    return _by_column(_numeric(file, array), columns)


def _read_pcd(file: File, _columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    pypcd4 = _library(file.path, "pypcd4")
    try:
        cloud = pypcd4.PointCloud.from_fileobj(io.BytesIO(file.read()))
        array = cloud.pc_data
        return {name: _numeric(file, array[name]) for name in array.dtype.names}
    except BadInput:
        raise
    except Exception as error:  # of a parser that trusts its input
        raise BadInput(file.path, f"is no PCD ({_first_line(error)})", _AGAIN) from None


def _read_las(file: File, _columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    laspy = _library(file.path, "laspy")
    try:
        cloud = laspy.read(io.BytesIO(file.read()))
        scaled = {axis: np.array(getattr(cloud, axis)) for axis in "xyz"}
        names = [name for name in cloud.point_format.dimension_names if name not in "XYZ"]
        return {**scaled, **{name: np.array(cloud[name]) for name in names}}
    except Exception as error:  # laspy's errors have no common base
        raise BadInput(file.path, f"is no LAS ({_first_line(error)})", _AGAIN) from None


READERS: Mapping[str, Callable[[File, Sequence[str]], Mapping[str, np.ndarray]]] = {
    ".bin": _read_bin,
    ".npy": _read_npy,
    ".pcd": _read_pcd,
    ".las": _read_las,
}
"""Formats of sweep files, by their ending: the columns or fields by name."""


def _by_column(rows: np.ndarray, columns: Sequence[str]) -> Mapping[str, np.ndarray]:
    return {name: rows[:, i] for i, name in enumerate(columns)}


def _numeric(file: File, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise BadInput(file.path, f"holds values of type {array.dtype}, which are no numbers")
    return array


def _library(path: Path, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BadInput(path, f"needs {name}, which is not installed", INSTALL) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0][:120]

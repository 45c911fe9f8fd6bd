"""Labelled point clouds as LAS, PLY or PCD files, for CloudCompare, PDAL, Open3D and others.

Frames are files of their own in the LiDAR's frame, or one map of a scene in world coordinates.
"""

from __future__ import annotations

import importlib
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8, UInt64

from clipsweep.pipeline.artifacts.store import write_folder
from clipsweep.pipeline.labels import LabelSpace
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Cloud, Frame
from clipsweep.projection.grid import cell_keys

POINT = np.dtype(
    [
        ("x", "<f8"),
        ("y", "<f8"),
        ("z", "<f8"),
        ("intensity", "<f4"),
        ("red", "u1"),
        ("green", "u1"),
        ("blue", "u1"),
        ("label", "u1"),
    ]
)
"""Record of a labelled point: position [m], intensity 0..1, colour of its class, class or 255."""
INSTALL = 'pip install -e ".[view]"'
_GREY = 160
_CHUNK = 1_000_000
_LAS_USER = 64
"""First class code that LAS 1.4 leaves to users; a class is this plus its number."""
_LAS_UNCLASSIFIED = 1
_LAS_SCALE_M = 0.001

Labelled = Iterable[tuple[Frame, Cloud, UInt8[np.ndarray, " n"]]]
Writer = Callable[[Path, np.ndarray, LabelSpace], None]


def export_frames(out: Path, suffix: str, space: LabelSpace, labelled: Labelled) -> None:
    """Exports each labelled key frame as a point cloud file, ``SCENE/FRAME.<suffix>``.

    Args:
        out: new folder.
        suffix: ``las``, ``ply`` or ``pcd``.
        space: names and colours.
        labelled: key frames, each with its key sweep and the label of each point of that.

    Raises:
        BadInput: ``out`` exists, there is no frame, two have the same file name, or a library is
            not installed.
    """
    write = _writer(suffix)

    def fill(folder: Path) -> None:
        for frame, cloud, label in labelled:
            path = folder / file_name(frame.scene) / f"{file_name(frame.id)}.{suffix}"
            _refuse_second(path, frame.id)
            path.parent.mkdir(exist_ok=True)
            write(path, _points(cloud.xyz.astype(np.float64), cloud, label, space), space)
        _finish(folder, space)

    write_folder(out, fill)


def export_maps(
    out: Path, suffix: str, space: LabelSpace, labelled: Labelled, voxel_m: float
) -> None:
    """Exports a point cloud map of each scene in world coordinates, ``SCENE.<suffix>``.

    The map is thinned to the first point of each voxel, and spooled to disk: memory holds the keys
    of occupied voxels (8 bytes each) and one frame.

    Args:
        out: new folder.
        suffix: ``las``, ``ply`` or ``pcd``.
        space: names and colours.
        labelled: key frames, scene by scene, each with its key sweep and its labels.
        voxel_m: edge of a voxel [m].

    Raises:
        BadInput: as ``export_frames``.
    """
    write = _writer(suffix)

    def fill(folder: Path) -> None:
        for scene, frames in groupby(labelled, key=lambda each: each[0].scene):
            path = folder / f"{file_name(scene)}.{suffix}"
            _refuse_second(path, scene)
            with tempfile.TemporaryFile(dir=folder) as spool:
                for points in _thinned(frames, space, voxel_m):
                    spool.write(points.tobytes())
                count = spool.tell() // POINT.itemsize
                spool.flush()
                write(path, np.memmap(spool, POINT, "r", shape=(count,)), space)
        _finish(folder, space)

    write_folder(out, fill)


def _thinned(frames: Labelled, space: LabelSpace, voxel_m: float) -> Iterator[np.ndarray]:
    """Points of each frame that lie in a voxel which no point before has taken."""
    taken = _Taken()
    scene_from_global = None
    for frame, cloud, label in frames:
        global_from_lidar = frame.sweeps[0].global_from_lidar
        if scene_from_global is None:
            scene_from_global = global_from_lidar.inverse()
        keys = cell_keys(cloud.xyz, voxel_m, scene_from_global @ global_from_lidar)
        new = taken.add(keys)
        xyz = global_from_lidar.apply(cloud.xyz.astype(np.float64))
        yield _points(xyz, cloud, label, space)[new]


class _Taken:
    """Set of voxel keys that grows: sorted runs, merged when the last is no longer the shortest."""

    def __init__(self) -> None:
        self._runs: list[UInt64[np.ndarray, " m"]] = []

    def add(self, keys: UInt64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Adds keys; marks the first of each that was not there."""
        first, place = np.unique(keys, return_index=True)
        fresh = np.ones(len(first), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, first), len(run) - 1)
            fresh &= run[at] != first
        new = np.zeros(len(keys), bool)
        new[place[fresh]] = True
        if fresh.any():
            self._runs.append(first[fresh])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            merged = np.concatenate([self._runs.pop(), self._runs.pop()])
            merged.sort()
            self._runs.append(merged)
        return new


def _points(
    xyz: np.ndarray, cloud: Cloud, label: UInt8[np.ndarray, " n"], space: LabelSpace
) -> np.ndarray:
    """Records of labelled points."""
    colors = np.full((256, 3), _GREY, np.uint8)
    colors[: len(space)] = space.colors
    points = np.empty(len(xyz), POINT)
    for axis, name in enumerate(("x", "y", "z")):
        points[name] = xyz[:, axis]
    for channel, name in enumerate(("red", "green", "blue")):
        points[name] = colors[label, channel]
    points["intensity"] = cloud.intensity
    points["label"] = label
    return points


def file_name(text: str) -> str:
    """File name of a scene or frame: what is no letter, digit or ``_.+-`` becomes ``-``."""
    return re.sub(r"[^\w.+-]", "-", text).lstrip(".")[:200] or "-"


def _refuse_second(path: Path, name: str) -> None:
    if path.exists():
        raise BadInput(name, f"has the file name {path.name} of another", "rename it in the data")


def _finish(folder: Path, space: LabelSpace) -> None:
    """Writes the names of all labels beside the files, of which some formats hold none."""
    if not any(folder.iterdir()):
        raise BadInput("data.eval", "has no frame to export")
    (folder / "labels.txt").write_text("\n".join([*_legend(space), ""]))


# --- formats --------------------------------------------------------------------------------------


def _writer(suffix: str) -> Writer:
    """Writer of a format, once its library is known to be there."""
    library, write = CLOUDS[suffix]
    try:
        importlib.import_module(library)
    except ImportError:
        raise BadInput(f"format={suffix}", f"needs {library}", INSTALL) from None
    return write


def _write_las(path: Path, points: np.ndarray, space: LabelSpace) -> None:
    """LAS 1.4, point format 7: class codes from 64 on, their names in the lookup record."""
    import laspy
    from laspy.vlrs.known import ClassificationLookupVlr

    header = laspy.LasHeader(point_format=7, version="1.4")
    header.scales = np.full(3, _LAS_SCALE_M)
    first = points[:1]
    header.offsets = np.array([np.floor(first[name]).sum() for name in ("x", "y", "z")])
    lookup = ClassificationLookupVlr()
    for number, name in enumerate(space.names):
        lookup[_LAS_USER + number] = _ascii(name)[:15]
    header.vlrs.append(lookup)
    with laspy.open(path, mode="w", header=header) as file:
        for chunk in _chunks(points):
            record = laspy.ScaleAwarePointRecord.zeros(len(chunk), header=header)
            for name in ("x", "y", "z"):
                record[name] = chunk[name]
            for name in ("red", "green", "blue"):
                record[name] = chunk[name].astype(np.uint16) * 257
            record["intensity"] = np.round(np.clip(chunk["intensity"], 0, 1) * 65535)
            record["classification"] = np.where(
                chunk["label"] == NONE, _LAS_UNCLASSIFIED, chunk["label"] + _LAS_USER
            )
            file.write_points(record)


def _ascii(name: str) -> str:
    """Name in ASCII letters, digits and spaces alone."""
    return "".join(c if c.isascii() and c.isalnum() else " " for c in name)


def _write_ply(path: Path, points: np.ndarray, space: LabelSpace) -> None:
    """Binary PLY: property ``label``, class names in comments."""
    import plyfile

    vertices = plyfile.PlyElement.describe(points, "vertex")
    plyfile.PlyData(
        [vertices], byte_order="<", comments=[_ascii(line) for line in _legend(space)]
    ).write(str(path))


def _legend(space: LabelSpace) -> list[str]:
    return [f"{number} {name}" for number, name in enumerate(space.names)]


def _write_pcd(path: Path, points: np.ndarray, space: LabelSpace) -> None:
    """Binary PCD: fields ``rgb`` (packed) and ``label``; the format has no place for names."""
    from pypcd4.pypcd4 import Encoding, PointCloud

    colors = [points[name].astype(np.uint32) for name in ("red", "green", "blue")]
    packed = (colors[0] << 16 | colors[1] << 8 | colors[2]).view(np.float32)
    columns: list[Any] = [points[name] for name in ("x", "y", "z", "intensity")]
    fields = ("x", "y", "z", "intensity", "rgb", "label")
    types = (np.float64, np.float64, np.float64, np.float32, np.float32, np.uint8)
    cloud = PointCloud.from_points([*columns, packed, points["label"]], fields, types)
    cloud.save(path, encoding=Encoding.BINARY)


def _chunks(points: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(points), _CHUNK):
        yield points[start : start + _CHUNK]


CLOUDS: dict[str, tuple[str, Writer]] = {
    "las": ("laspy", _write_las),
    "ply": ("plyfile", _write_ply),
    "pcd": ("pypcd4", _write_pcd),
}
"""Formats of point clouds: the library of each and its writer."""

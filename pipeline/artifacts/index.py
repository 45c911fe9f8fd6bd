"""Index of the key frames of a data set: rows, Parquet schema, reading.

What a reader yields, how it is stored, and how frames come back from it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, File, Frame, Sweep
from clipsweep.projection.pose import Pose

MAX_SWEEPS = 11
"""Sweeps of a frame in the index: the key sweep and up to ten earlier ones."""


_OLDER_SWEEP = "(an older sweep)"  # stands in manifests and messages in place of a frame's id
_PART_BYTES_MAX = 255  # of Linux file systems
_PATH_BYTES_MAX = 4095


@dataclass(frozen=True, slots=True)
class Skip:
    """Skipped key frame, or skipped older sweep of frames that stay, and why.

    Attributes:
        frame: id of the frame; None of an older sweep, which several frames share.
        scene: name of its scene; empty where it is not known.
        reason: what is wrong with it.
    """

    frame: str | None
    scene: str
    reason: str

    @property
    def name(self) -> str:
        """Name of what was skipped, as messages show it."""
        return _OLDER_SWEEP if self.frame is None else self.frame

    def row(self) -> dict[str, str]:
        """Entry of the skipped frame in markers and manifests."""
        return {"frame": self.name, "scene": self.scene, "reason": self.reason}

    @staticmethod
    def of_row(row: Mapping[str, str]) -> Skip:
        """Reads the record of a skipped frame from an entry in a marker or manifest."""
        name, scene, reason = (row[key] for key in ("frame", "scene", "reason"))
        if not all(isinstance(text, str) for text in (name, scene, reason)):
            raise TypeError(f"{row!r} holds what is no text")
        return Skip(None if name == _OLDER_SWEEP else name, scene, reason)


@dataclass(frozen=True, eq=False, slots=True)
class Row:
    """Index row: one key frame as a reader found it.

    Attributes:
        frame: the frame, or why it cannot be used.
        train: whether it is a training frame.
        eval: whether it is one to score on.
        missing_sweeps: earlier sweeps that the tables name and the disk lacks.
    """

    frame: Frame | Skip
    train: bool
    eval: bool
    missing_sweeps: int = 0


STORED = "store:"
"""Begins the path of a converted file in the index: it lies below the store, not the data root."""
_FILE = [("path", pa.string()), ("bytes", pa.int64()), ("sha256", pa.string())]
_POSE = pa.list_(pa.float64(), 12)
_SWEEP = pa.struct([("time_us", pa.int64()), ("global_from_lidar", _POSE), *_FILE])
_CAMERA = pa.struct(
    [
        ("name", pa.string()),
        ("time_us", pa.int64()),
        ("global_from_cam", _POSE),
        ("K", pa.list_(pa.float64(), 9)),
        ("size_hw", pa.list_(pa.int32(), 2)),
        *_FILE,
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("scene", pa.string()),
        ("time_us", pa.int64()),
        ("train", pa.bool_()),
        ("eval", pa.bool_()),
        ("sweeps", pa.list_(_SWEEP)),
        ("cameras", pa.list_(_CAMERA)),
        ("labels", pa.struct(_FILE)),
    ]
)


@dataclass(frozen=True, slots=True)
class _Roots:
    """Folders that the paths of an index lie below: the data root, and the store for the rest."""

    data: Path
    store: Path

    def file(self, row: Mapping[str, Any]) -> File:
        """File of an entry of the index."""
        name = row["path"]
        if name.startswith(STORED):
            path = within(self.store, name.removeprefix(STORED))
        else:
            path = within(self.data, name)
        return File(path, row["bytes"], row["sha256"])

    def row(self, file: File) -> dict[str, Any]:
        """Entry of a file in the index."""
        if file.path.is_relative_to(self.data):
            path = file.path.relative_to(self.data).as_posix()
        else:
            path = STORED + file.path.relative_to(self.store).as_posix()
        return {"path": path, "bytes": file.bytes, "sha256": file.sha256}


def _original(name: str) -> str:
    """Path below the data root of a file in the index, or of what it was converted from.

    The ending may be another one.
    """
    return name.partition("/")[2] if name.startswith(STORED) else name


def _columns(row: Row, frame: Frame, roots: _Roots) -> dict[str, Any]:
    return {
        "id": frame.id,
        "scene": frame.scene,
        "time_us": frame.time_us,
        "train": row.train,
        "eval": row.eval,
        "sweeps": [
            {
                "time_us": s.time_us,
                "global_from_lidar": s.global_from_lidar.matrix().ravel().tolist(),
                **roots.row(s.points),
            }
            for s in frame.sweeps
        ],
        "cameras": [
            {
                "name": c.name,
                "time_us": c.time_us,
                "global_from_cam": c.global_from_cam.matrix().ravel().tolist(),
                "K": c.K.ravel().tolist(),
                "size_hw": list(c.size_hw),
                **roots.row(c.image),
            }
            for c in frame.cameras
        ],
        "labels": roots.row(frame.labels) if frame.labels else None,
    }


def to_parquet(
    rows: Iterable[Row], root: Path, store: Path = Path()
) -> tuple[bytes, dict[str, str]]:
    """Writes the index as Parquet, one row group a scene, with a digest of each scene's rows.

    The digest is of all that a row holds of its frame; the roles ``train`` and ``eval`` are not in
    it. Rows of one scene must follow each other.

    Args:
        rows: of the index.
        root: the data root.
        store: folder of all artifacts, where files lie that were converted.
    """
    roots = _Roots(root, store)
    sink = io.BytesIO()
    digests: dict[str, str] = {}
    usable = (row for row in rows if isinstance(row.frame, Frame))
    with pq.ParquetWriter(sink, SCHEMA) as writer:
        for scene, group in groupby(usable, lambda row: row.frame.scene):
            columns = [
                _columns(row, row.frame, roots) for row in group if isinstance(row.frame, Frame)
            ]
            writer.write_table(pa.Table.from_pylist(columns, SCHEMA))
            described = [
                {k: v for k, v in each.items() if k not in ("train", "eval")} for each in columns
            ]
            digests[scene] = hashlib.sha256(
                json.dumps(described, sort_keys=True).encode()
            ).hexdigest()
    return sink.getvalue(), digests


def within(root: Path, name: str) -> Path:
    """Safe path of a file below the data root, without path traversal.

    Raises:
        BadInput: the name leaves the data root, by dots, as an absolute path or through a link,
            leads in a circle, or is longer than a file system takes.
    """
    path = root / name
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > _PART_BYTES_MAX or len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise BadInput(
            f"{name[:40]}...",
            f"this file name in a table has {len(name)} characters",
            f"a file system takes {_PART_BYTES_MAX} bytes, or {_PATH_BYTES_MAX} with its folders;"
            " correct the table",
        )
    try:
        resolved = path.resolve()
    except RuntimeError:  # before Python 3.13
        raise BadInput(path, "is a link that leads back to itself") from None
    if not resolved.is_relative_to(root.resolve()):
        raise BadInput(
            name, "this file name in a table leaves the data root", f"it must lie under {root}"
        )
    return path


def _to_frame(row: dict[str, Any], roots: _Roots) -> Frame:
    sweeps = (
        Sweep(s["time_us"], Pose.from_matrix(s["global_from_lidar"]), roots.file(s))
        for s in row["sweeps"]
    )
    cameras = (
        Camera(
            c["name"],
            c["time_us"],
            Pose.from_matrix(c["global_from_cam"]),
            np.array(c["K"]).reshape(3, 3),
            (c["size_hw"][0], c["size_hw"][1]),
            roots.file(c),
        )
        for c in row["cameras"]
    )
    labels = roots.file(row["labels"]) if row["labels"] else None
    return Frame(row["id"], row["scene"], row["time_us"], tuple(sweeps), tuple(cameras), labels)


@contextmanager
def undamaged(index: Path) -> Iterator[None]:
    """Turns errors from a damaged Parquet index into ``BadInput``."""
    try:
        yield
    except BadInput:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise BadInput(
            index, f"is damaged ({reason})", "run the same command again with verify=true"
        ) from None


def read_index(index: Path, root: Path, scene: str) -> list[Frame]:
    """Reads the key frames of a scene from the index, in order of time.

    Paths are below the data root, those of converted files below the store, where the index is.

    Raises:
        BadInput: the index is damaged, as for the functions below, or names a file outside of the
            data root and the store.
    """
    roots = _Roots(root, index.parent.parent)
    with undamaged(index):
        table = pq.read_table(index, schema=SCHEMA, filters=[("scene", "=", scene)])
        return [_to_frame(row, roots) for row in table.to_pylist()]


def read_images(index: Path) -> dict[str, list[str]]:
    """Reads the names of the camera images of each scene, below the data root.

    Of a converted image it is the original's, with another ending perhaps.
    """
    images: dict[str, list[str]] = {}
    with undamaged(index), pq.ParquetFile(index) as file:
        for batch in file.iter_batches(1024, columns=["scene", "cameras.list.element.path"]):
            for scene, cameras in zip(
                *(batch[k].to_pylist() for k in ("scene", "cameras")), strict=True
            ):
                images.setdefault(scene, []).extend(_original(camera["path"]) for camera in cameras)
    return images


def read_image_counts(index: Path) -> dict[str, int]:
    """Reads the number of camera images of each key frame."""
    with undamaged(index), pq.ParquetFile(index) as file:
        table = file.read(["id", "cameras.list.element.name"])
        columns = (table[name].to_pylist() for name in ("id", "cameras"))
        return {frame: len(cameras) for frame, cameras in zip(*columns, strict=True)}


def read_frame_ids(index: Path) -> dict[str, list[str]]:
    """Reads the ids of the key frames of each scene, in order of time."""
    ids: dict[str, list[str]] = {}
    with undamaged(index):
        table = pq.read_table(index, columns=["scene", "id"])
        for scene, frame in zip(table["scene"].to_pylist(), table["id"].to_pylist(), strict=True):
            ids.setdefault(scene, []).append(frame)
    return ids


def read_label_files(index: Path) -> list[str]:
    """Reads the names of all label files of the index, below the data root."""
    with undamaged(index):
        column = pq.read_table(index, columns=["labels"])["labels"]
        return [labels["path"] for labels in column.to_pylist() if labels]


def read_scenes(index: Path, roles: Sequence[str] = ("train", "eval")) -> dict[str, int]:
    """Reads the scenes of a split (``train``, ``eval``), and their number of key frames."""
    with undamaged(index):
        table = pq.read_table(index, columns=["scene", *roles])
        counts: dict[str, int] = {}
        for row in zip(*(table[name].to_pylist() for name in ["scene", *roles]), strict=True):
            if any(row[1:]):
                counts[row[0]] = counts.get(row[0], 0) + 1
        return counts

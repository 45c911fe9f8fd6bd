"""Exports labels in the official formats of nuScenes-lidarseg and SemanticKITTI."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from clipsweep.pipeline.artifacts.store import write_folder
from clipsweep.pipeline.labels import LabelSpace
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame, PointLabels

T = TypeVar("T")

_META = {
    "use_camera": True,  # the student takes LiDAR alone, but cameras taught it
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": True,  # the teacher was trained elsewhere
}
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same labels give the same bytes


@dataclass(frozen=True)
class Format:
    """Official label format: file name, type and ids, and what makes a submission of such files.

    Attributes:
        file: name below the export's folder of the file of a split's frame.
        dtype: type of an id in it, little-endian.
        ids: ids that a submission may hold; 0 is none of them and stands for no label.
        seal: adds to the folder of a split what a submission needs beside the files.
    """

    file: Callable[[str, Frame], str]
    dtype: str
    ids: range
    seal: Callable[[Path, str], None]


def submission(
    format: Format,
    out: Path,
    split: str,
    space: LabelSpace,
    predictions: Iterable[tuple[Frame, UInt8[np.ndarray, " n"]]],
) -> None:
    """Exports a benchmark submission: an official id for every point of every frame.

    Raises:
        BadInput: ``out`` exists, there is no frame, a point has no class, or the space or a frame's
            id is not of this format.
    """
    table = _official(format, space)

    def write(folder: Path) -> None:
        for frame, label in _some(predictions):
            if (label >= len(space)).any():
                raise BadInput(
                    frame.id, "has points without a class; 0 is forbidden in a submission"
                )
            _place(folder, format.file(split, frame)).write_bytes(table[label].tobytes())
        format.seal(folder, split)

    write_folder(out, write)


def pseudo_labels(
    format: Format,
    out: Path,
    split: str,
    space: LabelSpace,
    labels: Iterable[tuple[Frame, PointLabels]],
) -> None:
    """Exports fused pseudo-labels in the official label files, 0 = no label.

    An ``.npz`` lies beside each file.

    The ``.npz`` holds ``score`` and ``agreement`` (float16, one a point). Nothing seals the folder
    as a submission: this is training material, not an entry.

    Raises:
        BadInput: ``out`` exists, there is no frame, or the space or a frame's id is not of this
            format.
    """
    table = _official(format, space)

    def write(folder: Path) -> None:
        for frame, points in _some(labels):
            path = _place(folder, format.file(split, frame))
            path.write_bytes(table[points.label].tobytes())
            np.savez(path.with_suffix(".npz"), score=points.score, agreement=points.agreement)

    write_folder(out, write)


def _some(labels: Iterable[T]) -> Iterator[T]:
    """All frames' labels; refuses an empty sequence."""
    empty = True
    for each in labels:
        empty = False
        yield each
    if empty:
        raise BadInput("data.eval", "has no frame to export")


def _official(format: Format, space: LabelSpace) -> np.ndarray:
    """Official label id of each class, 0 for everything beyond the classes."""
    if space.export is None or not set(space.export.tolist()) <= set(format.ids):
        spaces = "nuscenes16 goes with format=nuscenes, semantickitti19 with format=semantickitti"
        raise BadInput("labels.space", f"{space.name} has no ids in this format", spaces)
    table = np.zeros(256, format.dtype)
    table[: len(space)] = space.export
    return table


def _place(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _lidarseg_file(split: str, frame: Frame) -> str:
    return f"lidarseg/{split}/{frame.id}_lidarseg.bin"


def _lidarseg_entry(folder: Path, split: str) -> None:
    (folder / split).mkdir()
    (folder / split / "submission.json").write_text(json.dumps({"meta": _META}, indent=1))


def _kitti_file(_split: str, frame: Frame) -> str:
    if not re.fullmatch(r"\d{2}/\d{6}", frame.id):
        raise BadInput(
            frame.id, "is no sequence and scan of SemanticKITTI", "give the format of your data set"
        )
    return f"sequences/{frame.scene}/predictions/{frame.id[3:]}.label"


def _kitti_entry(folder: Path, _split: str) -> None:
    """Packs ``submission.zip`` with the directories that the SemanticKITTI server asks for."""
    with zipfile.ZipFile(folder / "submission.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in [folder / "sequences", *sorted((folder / "sequences").rglob("*"))]:
            name = path.relative_to(folder).as_posix()
            info = zipfile.ZipInfo(f"{name}/" if path.is_dir() else name, _ZIP_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, b"" if path.is_dir() else path.read_bytes())


FORMATS = {
    "nuscenes": Format(_lidarseg_file, "u1", range(1, 17), _lidarseg_entry),
    "semantickitti": Format(_kitti_file, "<u4", range(10, 260), _kitti_entry),
}
"""``nuscenes``: ``lidarseg/{split}/{token}_lidarseg.bin`` and ``{split}/submission.json``.

``semantickitti``:
``sequences/{XX}/predictions/{NNNNNN}.label`` and ``submission.zip`` of them, to which a user may
add a description."""

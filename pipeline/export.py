"""Writes labels in the official formats of the data sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.labels import LabelSpace
from projection.errors import BadInput
from projection.frames import NONE, Frame, PointLabels

_META = {
    "use_camera": True,  # the student takes LiDAR alone, but cameras taught it
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": True,  # the teacher was trained elsewhere
}


def nuscenes_submission(
    out: Path, split: str, space: LabelSpace, predictions: Iterable[tuple[Frame, UInt8[np.ndarray, " n"]]]
) -> None:
    """Writes ``lidarseg/{split}/{token}_lidarseg.bin`` (uint8, 1..16, a byte a point) and ``{split}/submission.json``.

    Raises:
        BadInput: ``out`` exists, a point has no class, or the space has no official ids.
    """

    def write(folder: Path) -> None:
        for frame, label in predictions:
            if (label >= len(space)).any():
                raise BadInput(frame.id, "has points without a class; 0 is forbidden in a submission")
            _bin(folder, split, frame).write_bytes(_official(space)[label].tobytes())
        (folder / split).mkdir()
        (folder / split / "submission.json").write_text(json.dumps({"meta": _META}, indent=1))

    _whole(out, write)


def nuscenes_pseudo_labels(
    out: Path, split: str, space: LabelSpace, labels: Iterable[tuple[Frame, PointLabels]]
) -> None:
    """Writes fused labels as ``lidarseg/{split}/{token}_lidarseg.bin`` with 0 = no opinion, and ``.npz`` beside them.

    The ``.npz`` holds ``score`` and ``agreement`` (float16, one a point). There is no submission file: this is
    training material, not an entry.

    Raises:
        BadInput: ``out`` exists, or the space has no official ids.
    """

    def write(folder: Path) -> None:
        for frame, points in labels:
            path = _bin(folder, split, frame)
            path.write_bytes(_official(space)[points.label].tobytes())
            np.savez(path.with_suffix(".npz"), score=points.score, agreement=points.agreement)

    _whole(out, write)


def _official(space: LabelSpace) -> UInt8[np.ndarray, "256"]:
    if space.export is None or space.export.max() > NONE:
        raise BadInput("labels.space", f"{space.name} has no ids in nuScenes' format", "use labels.space=nuscenes16")
    table = np.zeros(256, np.uint8)
    table[: len(space)] = space.export
    return table


def _bin(folder: Path, split: str, frame: Frame) -> Path:
    parent = folder / "lidarseg" / split
    parent.mkdir(parents=True, exist_ok=True)
    return parent / f"{frame.id}_lidarseg.bin"


def _whole(out: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder under a temporary name and renames it when it is whole."""
    if out.exists():
        raise BadInput(out, "exists already", "delete it or give another out=")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Export of labels as submissions and pseudo-label files, in any official format."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Format:
    """Official label format of a data set: a file of ids for each frame.

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

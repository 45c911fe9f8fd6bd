"""Label leakage guard: refuses to open label files in annotation-free training."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from clipsweep.pipeline.artifacts.index import read_label_files
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.datasets import DATASETS, DataConfig
from clipsweep.pipeline.stages.boxes import boxes_artifact


class LabelLeak(RuntimeError):
    """Error: a file of human labels was opened in annotation-free training."""


_OPEN_FILES = "/proc/self/fd"
_forbidden: set[str] = set()


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _forbidden and isinstance(arguments[0], str | bytes | os.PathLike):
        name = os.fsdecode(arguments[0])
        if any({path, os.path.dirname(path)} & _forbidden for path in _meant(name)):
            raise LabelLeak(f"{name} was opened in an annotation-free training")


def _meant(name: str) -> Iterator[str]:
    """All paths that a file name of an audit event may stand for.

    The audit event has no ``dir_fd``, so a relative name that is not there from here may lie
    below any folder that is open.
    """
    yield os.path.abspath(name)
    yield os.path.realpath(name)
    if not os.path.isabs(name) and not os.path.exists(name):
        for number in os.listdir(_OPEN_FILES):
            yield os.path.realpath(f"{_OPEN_FILES}/{number}/{name}")


@cache
def _install() -> None:
    """Installs the audit hook in this process, once: Python cannot remove one again."""
    sys.addaudithook(_watch)


def label_folders(data: DataConfig, index: Artifact) -> list[Path]:
    """Label folders and files: where ground truth of any split lies.

    They are those of the data set's layout, those that the index names, and the stored boxes of
    this and of any other index beside it, which ``labels.truth=boxes`` scores against.
    """
    root = Path(data.root)
    reader = DATASETS[data.kind]
    found = {(root / name).parent for name in read_label_files(index.payload("index"))}
    for pattern in (*reader.label_folders, *reader.label_files):
        found.update(root.glob(pattern))
    if reader.boxes:
        found.add(boxes_artifact(index).path)
    found.update(index.path.parent.glob("boxes-*"))
    return sorted(found)


@contextmanager
def no_labels(places: Iterable[Path]) -> Iterator[None]:
    """Label leakage guard: context in which no file at or in these places may be opened.

    Opening one raises ``LabelLeak``, in worker processes too.

    It is an audit hook of the interpreter: whichever Python code opens the file is noticed, a
    library that opens it in C or Rust by itself is not. The first guard of a process installs the
    hook, which Python cannot remove: it stays, and lets every file pass while no guard is open.
    """
    _install()
    names = {name(place) for place in places for name in (os.path.abspath, os.path.realpath)}
    _forbidden.update(names)
    try:
        yield
    finally:
        _forbidden.difference_update(names)

"""Keeps human labels out of a training that must not see them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from projection.frames import Frame


class LabelLeak(RuntimeError):
    """A file of human labels was opened in an annotation-free training."""


_forbidden: set[str] = set()


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _forbidden and isinstance(arguments[0], str | bytes | os.PathLike):
        folder = os.path.dirname(os.path.abspath(os.fsdecode(arguments[0])))
        if folder in _forbidden:
            raise LabelLeak(f"{os.fsdecode(arguments[0])} was opened in an annotation-free training")


sys.addaudithook(_watch)


@contextmanager
def no_labels(frames: Sequence[Frame]) -> Iterator[None]:
    """While this lasts, opening any file beside the frames' label files raises ``LabelLeak``, in worker processes too.

    It is an audit hook of the interpreter, so it does not matter which library opens the file.
    """
    folders = {os.path.dirname(os.path.abspath(frame.labels.path)) for frame in frames if frame.labels}
    _forbidden.update(folders)
    try:
        yield
    finally:
        _forbidden.difference_update(folders)

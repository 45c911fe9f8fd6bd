"""Lock of an artifact store: tools share it while they run, and nothing is deleted meanwhile.

It is a ``flock``, which ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from clipsweep.projection.errors import BadInput

_NAME = ".lock"


@contextmanager
def store_in_use(store: str) -> Iterator[None]:
    """Shared lock context: a tool makes or reads artifacts of a store.

    A store that cannot be written, or whose file system has no locks, is not locked: nothing can be
    deleted there either. One that was not there and got nothing is not there afterwards.
    """
    path = Path(store)
    new = [folder for folder in (path, *path.parents) if not folder.exists()]
    descriptor = None
    with suppress(OSError):  # the stage that writes there reports it
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
    if descriptor is None:
        yield
        return
    try:
        with suppress(OSError):  # no locks on this file system
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        with suppress(OSError):  # another tool has started there
            if new and os.listdir(path) == [_NAME]:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                (path / _NAME).unlink()
                for folder in new:
                    folder.rmdir()
        os.close(descriptor)


@contextmanager
def store_alone(store: str) -> Iterator[None]:
    """Exclusive lock context: nothing else runs on a store, so that artifacts can be deleted.

    Raises:
        BadInput: a tool is running on it, or its file system has no locks.
    """
    descriptor = os.open(Path(store) / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            cure = "wait until it has ended"
            raise BadInput(store, "is in use: a tool is running on it", cure) from None
        except OSError as error:
            problem = f"cannot be locked ({error.strerror})"
            raise BadInput(store, problem, "delete artifacts by hand") from None
        yield
    finally:
        os.close(descriptor)

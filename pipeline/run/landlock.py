"""Landlock sandbox (Linux): takes files out of reach of this process and all that it starts.

The kernel refuses to open them, whoever asks: Python, a library in C, C++ or Rust, a child process.
A process cannot give it up again. Threads that run already keep their rights.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_CREATE_RULESET = 444  # the same on all architectures
_ADD_RULE = 445
_RESTRICT_SELF = 446
_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38
_READ_FILE = 1 << 2
_REFER = 1 << 13
"""Right to rename and link between folders; a file may never gain rights by it."""
_MIN_ABI = 2  # Linux 5.19, the first that can grant _REFER
_HARMLESS_THREADS = {"jemalloc_bg_thd"}  # frees memory for pyarrow


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("folder", ctypes.c_int32))


def _call(number: int, *arguments: object) -> int:
    """System call; raises the ``OSError`` that it ends with."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"Landlock: {os.strerror(error)}")
    return int(result)


def available() -> bool:
    """Whether the kernel has Landlock, and no thread runs that would stay outside of it."""
    if sys.platform != "linux":
        return False
    with suppress(OSError):
        asked = (None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
        return _call(_CREATE_RULESET, *asked) >= _MIN_ABI and _alone()
    return False


def _alone() -> bool:
    """Whether this is the only thread of the process that opens files."""
    others = [task for task in Path("/proc/self/task").iterdir() if task.name != str(os.getpid())]
    return {(task / "comm").read_text().strip() for task in others} <= _HARMLESS_THREADS


def folders_above(places: Iterable[str]) -> set[str]:
    """All folders that hold one of these places, at any depth."""
    return {str(folder) for place in places for folder in Path(place).parents}


def close_files(places: Iterable[str], opened: Iterable[str] = ()) -> None:
    """Closes files to this process for good: none at or in these places can be opened any more.

    Landlock grants, it does not deny: all is granted that lies beside these places, and beside the
    folders above them. So what is made in such a folder later cannot be read either.

    Args:
        places: real paths of folders and files.
        opened: real paths of files in these places that stay open.

    Raises:
        OSError: the kernel refuses, or a folder above a place cannot be listed.
    """
    places = {place for place in set(places) if not folders_above([place]) & set(places)}
    handled = ctypes.c_uint64(_READ_FILE | _REFER)
    size = ctypes.c_size_t(ctypes.sizeof(handled))
    rules = _call(_CREATE_RULESET, ctypes.byref(handled), size, ctypes.c_uint32(0))
    try:
        for path in (*_beside(places), *opened):
            with suppress(FileNotFoundError):  # deleted meanwhile
                _grant(rules, path)
        ctypes.CDLL(None).prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))
    finally:
        os.close(rules)


def _beside(places: set[str]) -> Iterator[str]:
    """Everything beside the places and beside the folders above them."""
    above = folders_above(places)
    kept = {_identity(path) for path in (*above, *places) if os.path.exists(path)}
    for folder in above:
        if not os.path.isdir(folder):
            continue
        for entry in os.scandir(folder):
            # another mount of such a folder would open it under its own name too
            if not entry.is_symlink() and _identity(entry.path) not in kept:
                yield entry.path


def _identity(path: str) -> tuple[int, int]:
    with suppress(OSError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return 0, 0


def _grant(rules: int, path: str) -> None:
    handle = os.open(path, os.O_PATH | os.O_NOFOLLOW)
    try:
        rights = _READ_FILE | _REFER if os.path.isdir(path) else _READ_FILE
        rule = ctypes.byref(_Beneath(rights, handle))
        kind = ctypes.c_int(_PATH_BENEATH)
        _call(_ADD_RULE, ctypes.c_int(rules), kind, rule, ctypes.c_uint32(0))
    finally:
        os.close(handle)

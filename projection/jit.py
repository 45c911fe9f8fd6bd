"""Compiles kernels without the GIL and keeps them in a cache that many processes may fill at the
same time.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import IndexDataCacheFile

_PACKAGES = ("projection", "distill", "pipeline")


class _SharedCacheFile(IndexDataCacheFile):
    """Numba's cache of one function, with names that no other process chooses and no error that
    stops the caller.

    Numba numbers its data files and writes the index first. Two processes that compile for
    different argument types then both write file 1, and either may load the other's code for its
    own arguments; a reader in between finds code of an older source under a fresh index. Here each
    file has a name of its own and is whole before the index names it. Two that write the index at
    once lose one entry, which is compiled again next time.
    """

    def save(self, key: Any, data: Any) -> None:
        try:
            name = self._data_name(uuid.uuid4().int >> 64)
            self._save_data(name, data)
            self._save_index({**self._load_index(), key: name})
        except OSError:
            pass  # a full or read-only disk: the function runs uncached

    def load(self, key: Any) -> Any:
        try:
            return super().load(key)
        except Exception:  # a torn file after a crash of the machine: compile again
            return None

    def _load_index(self) -> Any:
        try:
            return super()._load_index()
        except Exception:
            return {}


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """Numba's ``njit`` with division as in NumPy.

    Cached where there is a place to write, else compiled per process.

    Args:
        function: to be compiled.
        options: more of ``njit``'s.
    """
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        compiled: Any = njit(cache=True, **options)(function)
    except RuntimeError:  # neither the source's folder nor the user's cache folder can be written
        return njit(**options)(function)
    file = getattr(compiled._cache, "_cache_file", None)
    if type(file) is IndexDataCacheFile:
        file.__class__ = _SharedCacheFile
        file._source_stamp = (  # pyright: ignore[reportAttributeAccessIssue]
            file._source_stamp,
            _sources(Path(function.__code__.co_filename).parent),
        )
    return compiled


@cache
def _sources(folder: Path) -> str:
    """Digest of what a function in this folder may have compiled into it.

    Numba looks at a function's own file alone, and goes on with old code of what it calls or reads
    from others.
    """
    root = Path(__file__).parents[1]  # which may be a folder of other packages, or hold data
    kernels = (path for package in _PACKAGES for path in (root / package).rglob("*kernels.py"))
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted({*folder.glob("*.py"), *kernels}))
    ).hexdigest()

"""Numba compilation without the GIL, with a disk cache that is safe for many processes."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

_PACKAGES = ("projection", "distill", "pipeline")


class _SharedCacheFile(IndexDataCacheFile):
    """Numba cache files of one function, safe for processes that compile at the same time.

    Numba numbers its data files and writes the index first. Two processes that compile for
    different argument types then both write file 1, and either may load the other's code for its
    own arguments; a reader in between finds code of an older source under a fresh index. Here each
    file has a name of its own and is whole before the index names it. Two that write the index at
    once lose one entry, which is compiled again next time. No error here stops the caller.
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


class _SharedCache(FunctionCache):
    """Numba disk cache of one function, stale when a source compiled into it changes.

    Raises:
        RuntimeError: neither the source's folder nor the user's cache folder can be written.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        files: Any = self._impl
        own = files.locator.get_source_stamp()
        stamp = (own, _sources(Path(function.__code__.co_filename).parent))
        self._cache_file = _SharedCacheFile(self.cache_path, files.filename_base, stamp)


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """Numba ``njit`` decorator: division as in NumPy, without the GIL, cached on disk.

    Cached where there is a place to write, else compiled in each process.

    Args:
        function: to be compiled.
        options: more of ``njit``'s.
    """
    settings: dict[str, Any] = {"nogil": True, "error_model": "numpy", **options}
    compiled: Any = njit(**settings)(function)
    with suppress(RuntimeError):
        compiled._cache = _SharedCache(function)  # as its ``enable_caching`` does with Numba's own
    return compiled


@cache
def _sources(folder: Path) -> str:
    """Digest of the source files in a folder that a function may have compiled into it.

    Numba looks at a function's own file alone, and goes on with old code of what it calls or reads
    from others.
    """
    root = Path(__file__).parents[1]  # which may be a folder of other packages, or hold data
    kernels = (path for package in _PACKAGES for path in (root / package).rglob("*kernels.py"))
    return hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted({*folder.glob("*.py"), *kernels}))
    ).hexdigest()

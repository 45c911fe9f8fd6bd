"""The cache of compiled code is safe to share, and never in the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipsweep.projection import jit, kernels

WORK = """
import sys
import numpy as np
from clipsweep.projection.grid import cell_keys, index_cells
xyz = np.random.default_rng(0).random((1000, 3)).astype(np.float32)
xyz = np.asfortranarray(xyz) if int(sys.argv[1]) % 2 else xyz  # two signatures of the same kernels
index, inverse = index_cells(cell_keys(xyz, 0.1))
assert (index.coords()[inverse, 1:] == np.floor(xyz.astype(np.float64) / 0.1)).all()
"""


@pytest.mark.slow
def test_eight_processes_fill_an_empty_cache_at_once(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for _ in range(2):  # once empty, once full
        running = [
            subprocess.Popen([sys.executable, "-c", WORK, str(k)], env=environment)
            for k in range(8)
        ]
        assert [process.wait(timeout=300) for process in running] == [0] * 8
    assert not list(tmp_path.rglob("*.tmp.*"))


def cache_file(folder: Path) -> jit._SharedCacheFile:
    return jit._SharedCacheFile(str(folder), "kernel", "stamp")


def test_names_are_never_shared(tmp_path):
    one = cache_file(tmp_path)
    two = cache_file(tmp_path)
    one.save("c-layout", "code for c"), two.save("any-layout", "code for any")
    assert one.load("c-layout") == "code for c"
    assert two.load("any-layout") == "code for any"
    assert len(list(tmp_path.glob("*.nbc"))) == 2


def test_torn_files_and_full_disks_stop_nobody(tmp_path):
    file = cache_file(tmp_path)
    file.save("key", "code")
    for path in tmp_path.glob("*.nbc"):
        path.write_bytes(b"torn")
    assert file.load("key") is None
    (tmp_path / "kernel.nbi").write_bytes(b"torn")
    assert file.load("key") is None
    cache_file(tmp_path / "not" / "there").save("key", "code")


def test_code_of_what_is_called_is_part_of_the_stamp(tmp_path):
    """Numba's own stamp is of the caller's file: a changed callee went on as it was."""
    (tmp_path / "callee.py").write_text(
        "from clipsweep.projection.jit import jit\n\n@jit\ndef f(x):\n    return x + 1\n"
    )
    caller = (
        "from callee import f\nfrom clipsweep.projection.jit import jit\n\n@jit\ndef g(x):\n "
        "   return f(x)\n"
    )
    (tmp_path / "caller.py").write_text(caller)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": paths}

    def answer() -> str:
        command = [sys.executable, "-c", "from caller import g; print(g(1))"]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert answer() == "2"
    (tmp_path / "callee.py").write_text(
        "from clipsweep.projection.jit import jit\n\n@jit\ndef f(x):\n    return x + 10\n"
    )
    assert answer() == "11"


def test_kernels_use_it():
    assert type(kernels.project._cache._cache_file) is jit._SharedCacheFile


def test_without_a_place_to_write_code_is_compiled_for_the_process():
    made: dict[str, Any] = {}
    exec(compile("def add(x):\n    return x + 1\n", "<no file>", "exec"), made)
    assert jit.jit(made["add"])(np.int64(2)) == 3

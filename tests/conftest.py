"""Shared fixtures, and run-time checks of every shape annotation in the packages."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parents[1]


def _checked_modules() -> list[str]:
    """Every module but the compiled kernels, whose arguments Numba types itself."""
    files = (path for package in ("projection", "distill", "pipeline") for path in (ROOT / package).rglob("*.py"))
    names = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files)
    plain = ("kernels", "render", "__init__")
    return [name for name in names if not name.endswith(plain)]


install_import_hook(_checked_modules(), "beartype.beartype")


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real sensor data."""
    folder = Path(os.environ.get("CLIPSWEEP_DATA", ROOT / "../shared/data"))
    if not folder.is_dir():
        pytest.skip(f"no sample data at {folder}; set CLIPSWEEP_DATA")
    return folder


@pytest.fixture(autouse=True)
def _at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands and configurations name files from the project's root."""
    monkeypatch.chdir(ROOT)

"""Shared fixtures, and run-time checks of every shape annotation in the packages."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from PIL import Image

from tests.helpers import LABELS_HW, ROOT, Outcome, Run, settings

SAMPLES = (ROOT / os.environ.get("CLIPSWEEP_DATA", "../shared/data")).resolve()


def _checked_modules() -> list[str]:
    """Every module but the compiled kernels, whose arguments Numba types itself."""
    files = (
        path
        for package in ("projection", "distill", "pipeline")
        for path in (ROOT / package).rglob("*.py")
    )
    names = (path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in files)
    plain = ("kernels", "render", "__init__")
    return [f"clipsweep.{name}" for name in names if not name.endswith(plain)]


for folder in ("projection", "distill", "pipeline", "tools"):
    sys.modules[folder] = None  # type: ignore[assignment] # a second module of the same file


# read when Ray is imported
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64, RAY_USAGE_STATS_ENABLED="0")
os.environ["CLIPSWEEP_DATA"] = str(SAMPLES)  # tests/configs names it
torch.set_num_threads(1)  # small work: waiting for a second thread costs more than it gives
install_import_hook(_checked_modules(), "beartype.beartype")

from clipsweep.pipeline.cli import main  # noqa: E402 - after the hook, as all of the packages
from clipsweep.pipeline.config import Config, DemoConfig  # noqa: E402
from clipsweep.pipeline.demo.make import make_demo  # noqa: E402


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of real sensor data."""
    if not SAMPLES.is_dir():
        pytest.skip(f"no sample data at {SAMPLES}; set CLIPSWEEP_DATA")
    return SAMPLES


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An empty working directory: what needs the project's own must name it."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo world of two short scenes, with label images beside it.

    Buildings above, road below.
    """
    root = tmp_path_factory.mktemp("world") / "data"
    sizes = DemoConfig(
        train_scenes=1, val_scenes=1, key_frames=3, width_px=160, height_px=90, azimuths=240
    )
    make_demo(Config(demo=sizes), root)
    ids = np.full(LABELS_HW, 2, np.uint8)
    ids[LABELS_HW[0] // 2 :] = 0
    for image in (root / "samples").glob("CAM_*/*.jpg"):
        path = root / "labels2d" / image.relative_to(root).with_suffix(".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(path)
    return root


@pytest.fixture
def world(small_world: Path, tmp_path: Path) -> Path:
    """A copy of the small world, to be damaged."""
    return Path(shutil.copytree(small_world, tmp_path / "data"))


@pytest.fixture(scope="session")
def _small_store(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a student of the small world and all that it was made from."""
    store = tmp_path_factory.mktemp("small") / "store"
    given = [*settings(small_world, store), "evaluate=false"]
    module = importlib.import_module("clipsweep.tools.pretrain")
    assert main(module.__doc__, module.KEYS, module.run, module.Arguments, given) == 0
    return store


@pytest.fixture
def small_store(_small_store: Path, tmp_path: Path) -> Path:
    """A copy of that store, to work in."""
    return Path(shutil.copytree(_small_store, tmp_path / "store"))


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a tool of tools/ in this process."""

    def run(name: str, *arguments: str) -> Outcome:
        module = importlib.import_module(f"clipsweep.tools.{name}")
        own = getattr(module, "Arguments", None)
        capsys.readouterr()
        uses_store = name != "status"  # it locks the store itself
        status = main(
            module.__doc__, module.KEYS, module.run, own, arguments, uses_store=uses_store
        )
        return Outcome(status, *capsys.readouterr())

    return run

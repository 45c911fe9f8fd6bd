"""A fleet costs in proportion to its scenes, counted in opened files, not in seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.tools.benchmarks import fleet
from tests.helpers import settings

_opened: list[str] = []
_hooked: list[bool] = []


def count_opened(event: str, arguments: tuple) -> None:
    if event == "open" and _hooked:
        _opened.append(str(arguments[0]))


@pytest.mark.parametrize("done", [False, True])
def test_labelling_and_skipping_open_the_same_files_for_each_scene(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    sys.addaudithook(count_opened)
    one = ("data.train=scene-0061", "data.eval=scene-0061")
    opened = []
    for scenes in (1, 2, 4):
        monkeypatch.setitem(DATASETS, "nuscenes", DATASETS["nuscenes"])
        fleet.simulate(scenes)
        config = load_config([*settings(small_world, tmp_path / str(scenes)), *one])
        if done:
            fleet.label(config)
        _opened.clear()
        _hooked.append(True)
        pixels = fleet.label(config)
        _hooked.clear()
        assert len(list(pixels.path.glob("fleet-*.safetensors"))) == scenes
        opened.append(sum(str(tmp_path) in name for name in _opened))
    assert opened[2] - opened[1] == 2 * (opened[1] - opened[0])
    # the marker alone; the interpreter reports it twice
    assert not done or opened[1] - opened[0] <= 2

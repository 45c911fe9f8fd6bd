"""The guides of tests/README.md: their code runs as it is printed."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clipsweep.distill.teacher
import clipsweep.pipeline.datasets
from clipsweep.pipeline.artifacts.read import read_pixels
from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.teachers import TEACHERS
from clipsweep.projection.frames import File, Frame
from clipsweep.projection.pose import Pose
from tests.helpers import Run, settings


def follow(folder: Path, heading: str, name: str) -> None:
    """Writes the module and the entry of a guide into a folder, and imports the entry."""
    page = Path(__file__).with_name("README.md").read_text()
    guide = page.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    module, entry = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (folder / f"{name}.py").write_text(module)
    (folder / "entry.py").write_text(entry)
    importlib.import_module("entry")


@pytest.fixture
def guide_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported as parts of the package, until the test ends."""
    folder = tmp_path / "guide"
    folder.mkdir()
    known = dict(DATASETS), dict(TEACHERS)
    packages = (clipsweep.distill.teacher, clipsweep.pipeline.datasets)
    for package in packages:
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    monkeypatch.syspath_prepend(str(folder))
    modules = set(sys.modules)
    yield folder
    for entries, before in zip((DATASETS, TEACHERS), known, strict=True):
        entries.clear()
        entries.update(before)
    for name in set(sys.modules) - modules:
        if name.rpartition(".")[2] in {"drives", "brightness", "entry"}:
            del sys.modules[name]


def test_the_teacher_of_the_guide_labels_pixels(
    small_world: Path, tmp_path: Path, guide_folder: Path, tool: Run
) -> None:
    follow(guide_folder, "How to add a teacher", "brightness")
    given = [*settings(small_world, tmp_path / "store"), "teacher.kind=brightness"]
    given += ["teacher.brightness.bright=200"]
    assert tool("label", *given).status == 0
    config = load_config(given)
    index = make_index(config)
    frame = scene_frames(index, config, scenes_of(index, "eval")[0])[0]
    image = read_pixels(make_pixels(config, index), frame)[0]
    assert image.label.shape == frame.cameras[0].size_hw
    assert set(np.unique(image.label)) == {0, 1}


def test_the_data_set_of_the_guide_gives_the_same_frames(
    small_world: Path, tmp_path: Path, guide_folder: Path, tool: Run
) -> None:
    follow(guide_folder, "How to add a data set", "drives")
    store = tmp_path / "store"
    official = load_config(settings(small_world, store))
    expected = frames_of(official)
    root = tmp_path / "drives"
    root.mkdir()
    for folder in ("samples", "sweeps", "lidarseg"):
        shutil.copytree(small_world / folder, root / folder)
    table = [shot(frame, small_world) for frame in expected]
    (root / "drives.json").write_text(json.dumps(table))
    given = [
        *(each for each in settings(small_world, store) if not each.startswith("data.")),
        *(f"data.root={root}", "data.kind=drives", "data.train=train", "data.eval=val"),
    ]
    found = frames_of(load_config(given))
    assert [frame.id for frame in found] == [frame.id for frame in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert [len(ours.sweeps), len(ours.cameras)] == [len(theirs.sweeps), len(theirs.cameras)]
        assert ours.labels is not None
        assert theirs.labels is not None
        assert ours.labels.read() == theirs.labels.read()
        np.testing.assert_allclose(
            ours.cameras[2].global_from_cam.matrix(), theirs.cameras[2].global_from_cam.matrix()
        )


def frames_of(config) -> list[Frame]:
    index = make_index(config)
    return [f for scene in scenes_of(index) for f in scene_frames(index, config, scene)]


def shot(frame: Frame, root: Path) -> dict:
    """A frame's entry in the table of drives."""

    def square(pose: Pose) -> list:
        return [*pose.matrix().tolist(), [0, 0, 0, 1]]

    def name(file: File) -> str:
        return str(file.path.relative_to(root.resolve()))

    assert frame.labels is not None
    return {
        "id": frame.id,
        "drive": frame.scene,
        "time_us": frame.time_us,
        "labels": name(frame.labels),
        "sweeps": [
            {
                "file": name(sweep.points),
                "time_us": sweep.time_us,
                "global_from_lidar": square(sweep.global_from_lidar),
            }
            for sweep in frame.sweeps
        ],
        "cameras": [
            {
                "file": name(camera.image),
                "name": camera.name,
                "time_us": camera.time_us,
                "global_from_cam": square(camera.global_from_cam),
                "K": camera.K.tolist(),
                "height": camera.size_hw[0],
                "width": camera.size_hw[1],
            }
            for camera in frame.cameras
        ],
    }

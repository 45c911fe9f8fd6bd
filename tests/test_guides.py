"""The guides of tests/README.md: their code runs as it is printed."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from clipsweep.pipeline.artifacts.read import read_pixels
from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.teachers import TEACHERS
from tests.helpers import Run, settings

IMPORTS = """
from __future__ import annotations
import hashlib, io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated
import numpy as np
from jaxtyping import Float32
from PIL import Image
from pydantic import Field
from clipsweep.distill.teacher.images import all_or_raise, prefetch
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.teachers import TEACHERS, TeacherKind
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, PixelLabels
"""


def test_the_teacher_of_the_guide_labels_pixels(
    small_world: Path, tmp_path: Path, tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = Path(__file__).with_name("README.md").read_text()
    guide = guide.partition("## How to add a teacher")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "guide_teacher.py").write_text(IMPORTS + code)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(TEACHERS)
    try:
        importlib.import_module("guide_teacher")
        given = [*settings(small_world, tmp_path), "teacher.kind=brightness"]
        given += ["teacher.brightness.bright=200"]
        assert tool("label", *given, "report=" + str(tmp_path / "report.png")).status == 0
        config = load_config(given)
        index = make_index(config)
        frame = scene_frames(index, config, scenes_of(index, "eval")[0])[0]
        pixels = make_pixels(config, index)
        image = read_pixels(pixels, frame)[0]
    finally:
        TEACHERS.clear()
        TEACHERS.update(before)
    assert image.label.shape == frame.cameras[0].size_hw
    assert set(np.unique(image.label)) == {0, 1}

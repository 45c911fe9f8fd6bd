"""The table of teacher settings.

Exact pixels, the sky as no class, and rows that differ by their setting.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipsweep.pipeline.artifacts.read import read_pixels
from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.demo.words import CLASS_OF_RAW, SKY
from clipsweep.pipeline.demo.write import true_pixels
from clipsweep.pipeline.stages.index import make_index, scene_frames
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.projection.errors import BadInput
from clipsweep.tools.benchmarks import pixels
from clipsweep.tools.benchmarks.pixels import Setting, teacher_settings


def test_lines_are_scored_on_every_pixel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [
        *(
            "demo",
            f"data.root={tmp_path / 'data'}",
            f"store={tmp_path / 'store'}",
            "run.progress=false",
        ),
        *("demo.train_scenes=0", "demo.val_scenes=1", "demo.key_frames=1", "demo.azimuths=240"),
        *("data.nuscenes.version=v1.0-mini", "data.train=mini_val", "data.eval=mini_val"),
    ]
    monkeypatch.setattr(
        pixels, "SETTINGS", (Setting("as configured"), Setting("no negatives", (), ()))
    )
    configured, without = (job.make() for job in teacher_settings(given))

    config = load_config(given)
    index = make_index(config)
    (frame,) = scene_frames(index, config, "scene-0103")
    truth = true_pixels(config.demo, "scene-0103")
    predicted = []
    true = []
    for camera, image in zip(
        frame.cameras, read_pixels(make_pixels(config, index), frame), strict=True
    ):
        label = np.array(CLASS_OF_RAW)[truth[camera.name, camera.time_us]]
        for v, u in np.ndindex(label.shape):
            predicted.append(
                image.label[v * image.label.shape[0] // 270, u * image.label.shape[1] // 480]
            )
            true.append(label[v, u])
    guess = np.array(predicted)
    right = np.array(true)
    for index_of, (name, iou) in enumerate(configured.iou.items()):
        one = guess == index_of
        two = right == index_of
        assert (
            iou == pytest.approx((one & two).sum() / (one | two).sum())
            if (one | two).any()
            else iou is None
        ), name
    assert configured.accuracy == [pytest.approx((guess == right)[right != SKY].mean())]
    assert configured.miou == [
        pytest.approx(np.mean([iou for iou in configured.iou.values() if iou is not None]))
    ]
    assert without.note.startswith("100 % labelled")
    assert not configured.note.startswith("100 % labelled")
    assert without.accuracy[0] >= configured.accuracy[0]

    with pytest.raises(BadInput, match="make_demo"):
        next(teacher_settings([*given, "make_demo=false"]))

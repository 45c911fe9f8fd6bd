"""Benchmark of the 2D teacher: mIoU of the demo's pixel labels against rendered ground truth.

One setting of the teacher after another.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.artifacts.read import key_cloud, read_truth
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.demo.render import SKY
from clipsweep.pipeline.demo.write import true_pixels
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.pipeline.stages.pixels import device
from clipsweep.pipeline.teachers import TeacherInputs, make_teacher
from clipsweep.projection.cameras import sample_pixel_labels
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame, PixelLabels
from clipsweep.projection.fusion import visible_pairs
from clipsweep.tools.benchmarks.experiments import Line
from clipsweep.tools.benchmarks.results import Job


@dataclass(frozen=True, slots=True)
class Setting:
    """Teacher setting of a table row.

    What differs from the configuration that was given; `negatives` None leaves them.
    """

    name: str
    overrides: tuple[str, ...] = ()
    negatives: tuple[str, ...] | None = None


_SYNONYMS = ("labels.prompts=",)
SETTINGS = (
    Setting("as configured"),
    Setting("templates short", ("teacher.maskclip.templates=short",)),
    Setting("templates plain", ("teacher.maskclip.templates=plain",)),
    Setting("no negatives", (), ()),
    Setting("CLIP2Scene's strings, no negatives", ("labels.prompts=reference",)),
    Setting("synonyms, their negatives", _SYNONYMS),
    Setting("synonyms, sky alone", _SYNONYMS, ("sky",)),
    Setting("synonyms, no negatives", _SYNONYMS, ()),
    *(
        Setting(f"min_score {s}", (f"teacher.maskclip.min_score={s}",))
        for s in (0.2, 0.3, 0.4, 0.5)
    ),
    *(
        Setting(f"key_smoothing {s}", (f"teacher.maskclip.key_smoothing={s}",))
        for s in (0.3, 0.5, 0.7, 1.0)
    ),
    *(Setting(f"denoising {s}", (f"teacher.maskclip.denoising={s}",)) for s in (0.2, 0.3, 0.5)),
    Setting("input x0.75", ("teacher.maskclip.size_hw=[192,352]",)),
    Setting("input x1.5", ("teacher.maskclip.size_hw=[416,736]",)),
    Setting("input x2", ("teacher.maskclip.size_hw=[544,960]",)),
    Setting(
        "x2 in tiles of x1",
        ("teacher.maskclip.size_hw=[512,960]", "teacher.maskclip.tile_hw=[256,480]"),
    ),
)


def teacher_settings(arguments: Sequence[str]) -> Iterator[Job]:
    """Pixel mIoU of each teacher setting in `SETTINGS`.

    A line for each setting: mIoU over the classes on all pixels of the scenes to be scored.

    Sky counts only as a mistake of the class that it is given. The note holds the share of grid
    cells with a label, the mIoU of the pixels that LiDAR points fall on, without fusion and with no
    label as a mistake, and the processor's time on all cores, from the JPEG file to labels.

    Raises:
        BadInput: the data are not the demo's, whose pixels can be rendered again.
    """
    given = load_config(arguments)
    if not given.make_demo:
        raise BadInput(
            "make_demo", "is false", "pixels have exact truth in the demo alone: configs/demo.yaml"
        )
    truth = functools.cache(lambda: _Truth.render(given))
    for setting in SETTINGS:
        its = [*arguments, *setting.overrides]
        yield Job(setting.name, its, partial(_measured, setting, its, truth))


@dataclass(frozen=True, eq=False, slots=True)
class _Truth:
    """Ground truth of the frames to be scored: raw class of each pixel of their images."""

    frames: list[Frame]
    pixels: dict[str, dict[tuple[str, int], UInt8[np.ndarray, "height width"]]]

    @classmethod
    def render(cls, config: Config) -> _Truth:
        make_demo(config, Path(config.data.root))
        index = make_index(config)
        scenes = scenes_of(index, "eval")
        pixels = {scene: true_pixels(config.demo, scene) for scene in scenes}
        frames = [frame for scene in scenes for frame in scene_frames(index, config, scene)]
        return cls(frames, pixels)


def _measured(setting: Setting, arguments: Sequence[str], rendered: Callable[[], _Truth]) -> Line:
    truth = rendered()
    config = load_config(arguments)
    space = load_space(config.labels)
    if setting.negatives is not None:
        space = dataclasses.replace(space, negatives=setting.negatives)
    inputs = TeacherInputs(space, Path(config.data.root), Path(config.store), device().type)
    teacher = make_teacher(config.teacher, inputs)
    teacher(truth.frames[0].cameras)  # builds the networks and the text
    start = time.process_time()
    labels = [teacher(frame.cameras) for frame in truth.frames]
    spent_s = time.process_time() - start
    images = [image for of_frame in labels for image in of_frame]
    cells = np.concatenate([image.label.ravel() for image in images])
    dense = Confusion.empty(len(space) + 1)
    lifted = Confusion.empty(len(space))
    for frame, of_frame in zip(truth.frames, labels, strict=True):
        lifted += _score_points(config, space, frame, of_frame)
        for camera, image in zip(frame.cameras, of_frame, strict=True):
            raw = truth.pixels[frame.scene][camera.name, camera.time_us]
            dense += _dense(space, raw, image)
    labelled = 100 * (cells < len(space)).mean()
    note = (
        f"{labelled:.0f} % labelled, points {100 * lifted.miou():.1f}, "
        f"{1e3 * spent_s / len(images):.1f} ms"
    )
    return _line(setting.name, dense, space.names, note)


def _dense(
    space: LabelSpace, raw: UInt8[np.ndarray, "height width"], image: PixelLabels
) -> Confusion:
    """Confusion matrix of all pixels against the cell of the teacher's grid that they lie in.

    The sky is one class more.
    """
    (height, width) = raw.shape
    (h, w) = image.label.shape
    predicted = image.label[np.arange(height) * h // height][:, np.arange(width) * w // width]
    truth = np.where(raw == SKY, np.uint8(len(space)), space.class_of_raw[raw])
    return Confusion.of(truth.ravel(), predicted.ravel(), len(space) + 1)


def _score_points(
    config: Config, space: LabelSpace, frame: Frame, images: Sequence[PixelLabels]
) -> Confusion:
    """Confusion matrix of the pixels of visible points against the points' true classes."""
    cloud = key_cloud(frame, config)
    truth = read_truth(frame, space, config)
    assert truth is not None
    pairs = visible_pairs(frame, cloud.xyz, config.fusion)
    label, _ = sample_pixel_labels(pairs, frame.cameras, images)
    return Confusion.of(truth[cloud.source[pairs.point]], label, len(space))


def _line(name: str, dense: Confusion, names: Sequence[str], note: str) -> Line:
    """Table row of the classes alone: the sky counts in their unions, not as a class."""
    iou = dense.iou()[: len(names)]
    right = float(np.trace(dense.counts) / dense.counts[: len(names)].sum())
    values = [None if np.isnan(value) else float(value) for value in iou]
    return Line(
        name, [float(np.nanmean(iou))], [right], dict(zip(names, values, strict=True)), note
    )

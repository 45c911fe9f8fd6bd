"""Pixels stage: semantic segmentation of the camera images by the 2D teacher."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from clipsweep.distill.teacher.maskclip import MaskClip, MaskClipConfig
from clipsweep.distill.teacher.precomputed import Precomputed, PrecomputedConfig
from clipsweep.distill.teacher.protocol import Teacher
from clipsweep.pipeline.artifacts.index import Skip, read_image_counts, read_images
from clipsweep.pipeline.artifacts.read import read_pixels, skip_or_raise
from clipsweep.pipeline.artifacts.store import Artifact, Part, digest_of
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.run.scenes import Shard, run_stage
from clipsweep.pipeline.stages.index import scene_frames, split_scenes
from clipsweep.pipeline.teachers import TeacherInputs, make_teacher
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Frame, PixelLabels

_log = logging.getLogger(__name__)

FRAMES = 32
"""Key frames of a shard: 300 MB where labels of six images have 512 x 1024 pixels."""


def device() -> torch.device:
    """Device of the networks: CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def open_teacher(config: Config, space: LabelSpace) -> Teacher:
    """Builds the 2D teacher of a configuration on the device."""
    inputs = TeacherInputs(space, Path(config.data.root), Path(config.store), device().type)
    return make_teacher(config.teacher, inputs)


class PixelWorker:
    """Worker that labels the images of a shard, or its kept features with other class names."""

    def __init__(
        self, config: Config, index: Artifact, parts: Sequence[Part], kept: Artifact | None
    ) -> None:
        self.config = config
        self.index = index
        self.parts = {part.shard: part for part in parts}
        self.kept = kept
        self.teacher = open_teacher(config, load_space(config.labels))

    def __call__(self, name: str) -> Shard:
        """Pixel labels of a shard's images."""
        part = self.parts[name]
        arrays: dict[str, np.ndarray] = {}
        skipped: list[Skip] = []
        wanted = set(part.frames)
        frames = [f for f in scene_frames(self.index, self.config, part.scene) if f.id in wanted]
        stream = iter(self._images(frames))
        for frame in frames:
            images = [next(stream) for _ in frame.cameras]
            errors = [image for image in images if isinstance(image, BadInput)]
            if errors:
                skipped.append(skip_or_raise(errors[0], frame, self.config))
                continue
            for camera, image in zip(frame.cameras, images, strict=True):
                assert isinstance(image, PixelLabels)
                prefix = f"{frame.id}/{camera.name}"
                arrays[f"{prefix}/label"] = image.label
                arrays[f"{prefix}/score"] = image.score
                if image.feature is not None:
                    arrays[f"{prefix}/feature"] = image.feature
        labels = [array for name, array in arrays.items() if name.endswith("/label")]
        counts = {"images": len(labels), "pixels": sum(int((a != NONE).sum()) for a in labels)}
        return Shard(arrays, skipped, counts, part.facts())

    def _images(self, frames: list[Frame]) -> Iterator[PixelLabels | BadInput]:
        if self.kept is None:
            yield from self.teacher.stream(camera for frame in frames for camera in frame.cameras)
            return
        assert isinstance(self.teacher, MaskClip)
        for frame in frames:
            for image in read_pixels(self.kept, frame):
                assert image.feature is not None
                yield self.teacher.relabel(image.feature)


def make_pixels(config: Config, index: Artifact) -> Artifact:
    """Labels the pixels of every camera image of the index by the 2D teacher.

    The shard ``_text`` holds the text embeddings of the classes. The teacher and the classes name
    the artifact. Where features of the same model were kept before and only the names differ, the
    images are not read again.

    Raises:
        BadInput: no key frame has a camera image; no pixel has a label, of a teacher that has
            classes.
    """
    _check_images(config, index)
    space = load_space(config.labels)
    own = config.teacher.own
    teacher = open_teacher(config, space)
    features = teacher.feature_digest() if isinstance(teacher, MaskClip) else ""
    key = {
        **config.values("on_bad", "teacher.kind"),
        "keep_features": isinstance(own, MaskClipConfig) and own.keep_features,
        "classes": [space.names, space.prompts, space.negatives],
        "teacher": teacher.digest(),
        "feature_digest": features,
    }
    files = _label_files(config, index, own) if isinstance(own, PrecomputedConfig) else {}
    parts = split_scenes(index, frames=FRAMES, inputs_of=lambda scene: files.get(scene, ""))
    pixels = Artifact.of(config.store, "pixels", key).holding(parts, index.skipped())
    shards = ["_text", *pixels.shards()]
    kept: Artifact | None = None
    readable = isinstance(own, MaskClipConfig) and not own.key_smoothing
    if readable and not _all_done(pixels, shards, config):
        kept = _kept_features(config, pixels, features)
    if kept:  # its features are rounded to 16 bits, so that a score may differ in its last digit
        relabelled = Artifact.of(config.store, "pixels", {**key, "relabelled": True})
        pixels = relabelled.holding(parts, index.skipped())
    if not pixels.done("_text", config.verify):
        pixels.commit_arrays("_text", {"text": teacher.text})
    worker = partial(PixelWorker, config, index, parts, kept)
    made = run_stage(pixels, shards, worker, config, gpu=True)
    _check_labels(config, index, made, teacher)
    return made


def _check_images(config: Config, index: Artifact) -> None:
    """Refuses data without any camera image; warns of key frames without one."""
    images = read_image_counts(index.payload("index"))
    without = [frame for frame, count in images.items() if not count]
    if len(without) == len(images):
        cure = "labels come from images: add cameras to the tables or set data.semantickitti.camera"
        raise BadInput(config.data.root, "no key frame has a camera image", cure)
    if without:
        some = f"{len(without)} of {len(images)} key frames have no camera image"
        _log.warning(f"{config.data.root}: {some}, first {without[0]}; others label their points")


def _check_labels(config: Config, index: Artifact, pixels: Artifact, teacher: Teacher) -> None:
    """Refuses pixel labels without a single labelled pixel, of a teacher that has classes."""
    counts = pixels.manifest()["counts"]
    images = counts.get("images", 0)
    labelled = counts.get("pixels", 1)  # not counted by earlier versions
    if labelled or not images or not len(teacher.text):
        return
    problem = f"no pixel of {images} images has a class"
    own = config.teacher.own
    if isinstance(teacher, Precomputed) and isinstance(own, PrecomputedConfig):
        lost = {skip.frame for skip in pixels.skipped()}
        frames = (
            frame for part in pixels.parts for frame in scene_frames(index, config, part.scene)
        )
        camera = next(c for frame in frames if frame.id not in lost for c in frame.cameras)
        ids = ", ".join(map(str, teacher.ids(camera)[:10]))
        problem += f"; the label image of {camera.image.path.name} has ids {ids}"
        cure = "none of them has a class there: name the map of these label images"
        raise BadInput(f"teacher.precomputed.map={own.map}", problem, cure)
    raise BadInput("teacher", problem, "look at the class names and teacher.maskclip.min_score")


def _all_done(artifact: Artifact, shards: Sequence[str], config: Config) -> bool:
    return all(artifact.done(shard, config.verify) for shard in shards)


def _kept_features(config: Config, pixels: Artifact, features: str) -> Artifact | None:
    """Cached dense features of all these images by the same model, as a finished artifact.

    No frame may be left out of it.
    """
    for manifest in sorted(Path(config.store).glob("pixels-*/manifest.json")):
        other = Artifact(manifest.parent).holding(pixels.parts, pixels.lost)
        key = other.manifest()["key"]
        kept = key.get("feature_digest") == features and key.get("keep_features")
        whole = kept and all(other.done(shard) for shard in other.shards())
        if whole and other.skipped() == list(pixels.lost):
            return other
    return None


def _label_files(config: Config, index: Artifact, own: PrecomputedConfig) -> dict[str, str]:
    """Digest of the names and sizes of each scene's label images.

    New ones in an old folder are new input.
    """
    root = Path(config.data.root) / own.root
    images = read_images(index.payload("index"))
    return {
        scene: digest_of([_size(f"{root}/{os.path.splitext(name)[0]}.png") for name in names])
        for scene, names in images.items()
    }


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return None

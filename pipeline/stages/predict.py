"""Inference stage: semantic class of every raw LiDAR point of the key sweeps, by a student."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import UInt8

from clipsweep.distill.student.checkpoint import Trained, load_student
from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import (
    raw_rows,
    record_older_sweep,
    skip_or_raise,
    sweep_layout,
    usable_cloud,
)
from clipsweep.pipeline.artifacts.store import Artifact, Part, digest_files
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.run.scenes import Shard, run_stage
from clipsweep.pipeline.stages.fit import READS_CLOUDS, finished_student
from clipsweep.pipeline.stages.index import scene_frames, split_scenes
from clipsweep.pipeline.stages.pixels import device
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame


def open_student(config: Config, student: str) -> tuple[Trained, str]:
    """Loads a trained student from its folder onto the device, with its digest.

    Raises:
        BadInput: it is not whole, or was made for other classes than ``labels`` has.
    """
    if not student:
        raise BadInput(
            "student", "is not set", "give student=FOLDER, as printed by tools/pretrain.py"
        )
    artifact = finished_student(student)
    trained = load_student(artifact.path)
    names = load_space(config.labels).names
    if trained.names != names:
        raise BadInput(
            artifact.path,
            f"has the classes {', '.join(trained.names)}",
            f"labels has {', '.join(names)}",
        )
    if not len(trained.text) and trained.student.classifier is None:
        raise BadInput(
            artifact.path,
            "was trained on features, without class names",
            "fine-tune it first: tools/finetune.py",
        )
    trained.student.to(device())
    return trained, digest_files([artifact.shard("model"), artifact.path / "config.json"])


def label_protocol(student: str) -> str:
    """Label protocol of a student: annotation-free, or the share of labels it was tuned on."""
    manifest = Artifact.at(student, "student").manifest()
    return str(manifest["protocol"]) if manifest["used_labels"] else "annotation-free"


def training_scenes(student: str) -> dict[str, str]:
    """Scenes that a student was trained on, each with the digest of its rows in the index."""
    return dict(Artifact.at(student, "student").manifest()["key"].get("scenes", {}))


FRAMES = 64
"""Key frames of a shard of predictions."""


class PredictWorker:
    """Worker of inference: predicts every raw point of some key sweeps of a scene."""

    def __init__(
        self, config: Config, index: Artifact, student: str, parts: Sequence[Part]
    ) -> None:
        self.config = config
        self.index = index
        self.parts = {part.shard: part for part in parts}
        self.trained, _ = open_student(config, student)

    def __call__(self, name: str) -> Shard:
        """Predicts the key sweeps of a shard."""
        part = self.parts[name]
        wanted = set(part.frames)
        arrays: dict[str, np.ndarray] = {}
        skipped: list[Skip] = []
        for frame in scene_frames(self.index, self.config, part.scene):
            if frame.id not in wanted:
                continue
            try:
                arrays[frame.id] = self.predict(
                    frame, partial(record_older_sweep, skipped, part.scene)
                )
            except BadInput as error:
                skipped.append(skip_or_raise(error, frame, self.config))
        counts = {"frames": len(arrays), "points": sum(map(len, arrays.values()))}
        return Shard(arrays, skipped, counts, part.facts())

    def predict(
        self, frame: Frame, left_out: Callable[[BadInput], None]
    ) -> UInt8[np.ndarray, " n"]:
        """Inference: predicted class of every raw point of a key sweep.

        Rows that are no points (``data.bad_share``) get the frame's most frequent one.
        """
        whole = replace(sweep_layout(self.config), ego_box_m=0.0)
        cloud = usable_cloud(frame, self.config, whole, self.trained.model.sweeps, left_out)
        height_m = self.config.data.sensor_height_m  # above the ground of the data's own rig
        origin = cloud.origin[cloud.sweep]
        label = self.trained.predict(cloud.xyz, cloud.intensity, cloud.age_s, height_m, origin)
        key = cloud.sweep == 0
        full = np.full(raw_rows(frame, self.config), np.bincount(label[key]).argmax(), np.uint8)
        full[cloud.source[key]] = label[key]
        return full


def make_predictions(config: Config, index: Artifact, student: str) -> Artifact:
    """Inference on the frames of ``data.eval`` with the student in a folder."""
    _, digest = open_student(config, student)
    key = {"student": digest, **config.values(*READS_CLOUDS)}
    parts = split_scenes(index, "eval", frames=FRAMES)
    scenes = {part.scene for part in parts}
    lost = [skip for skip in index.skipped() if skip.scene in scenes]
    predictions = Artifact.of(config.store, "predictions", key).holding(parts, lost)
    worker = partial(PredictWorker, config, index, student, parts)
    return run_stage(predictions, predictions.shards(), worker, config, gpu=True)

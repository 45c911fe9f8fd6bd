"""The learning stages: student, predictions, scores. Configuration and artifacts in, an artifact out."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from distill.checkpoint import (
    Trained,
    load_optimizer,
    load_student,
    make_student,
    optimizer_bytes,
    student_bytes,
    student_config,
)
from distill.metrics import OTHER, Confusion
from distill.train import make_optimizer, train
from pipeline.config import Config
from pipeline.datasets import DATASETS
from pipeline.datasets.rows import Skip
from pipeline.executor import Shard, run_stage
from pipeline.labels import LabelSpace, load_scoring, load_space
from pipeline.loaders import key_cloud, prediction_batch, read_points, target_source, training_batches
from pipeline.log import TrainingLog
from pipeline.stages import device, make_index, make_pixels, make_points, scene_frames, scenes_of, skip_or_raise
from pipeline.store import Artifact, write_whole
from projection.errors import BadInput
from projection.frames import NONE, Frame

# --- student ---------------------------------------------------------------------------------------------------------


def make_pretrained(config: Config) -> Artifact:
    """A student that learnt from the teacher, without any human label; makes the stages before it if they are missing.

    An unfinished training of the same configuration goes on from its last checkpoint. ``resume=`` starts from another
    student's weights and optimiser state instead.
    """
    started = time.time()
    index = make_index(config)
    pixels = make_pixels(config, index)
    points = make_points(config, index, pixels)
    key = {
        **config.groups("model", "objectives", "train", "seed", "on_bad"),
        "sensor_height_m": config.data.sensor_height_m,
        "fusion": config.groups("fusion"),
        "resume": Artifact.at(config.resume, "student").manifest()["digest"] if config.resume else "",
    }
    student = Artifact.of(config.store, "student", key, [index, pixels, points])
    if student.whole and student.done("model", config.verify):
        return student
    student.sweep_orphans()
    _pretrain(config, student, index, pixels, points)
    student.finish(["model"], config, started, points.skipped(), used_labels=False)
    return student


def _pretrain(config: Config, out: Artifact, index: Artifact, pixels: Artifact, points: Artifact) -> None:
    lost = {skip.frame for skip in points.skipped()}
    frames = [
        dataclasses.replace(frame, labels=None)  # no label file can be opened: its name is not known here
        for scene in scenes_of(index, "train")
        for frame in scene_frames(index, config, scene)
        if frame.id not in lost
    ]
    if not frames:
        raise BadInput("data.train", "no frame to learn from is left")
    text = torch.from_numpy(pixels.arrays("_text").get_tensor("text")).to(device())
    torch.manual_seed(config.seed)
    network = make_student(config.model, text.shape[1]).to(device())
    optimizer = make_optimizer(network, config.train)
    source = out if out.done("state") and out.done("model") else None
    if source is None and config.resume:
        source = Artifact.at(config.resume, "student")
    epoch = 0
    if source is not None:
        network.load_state_dict(load_student(source.path).student.state_dict())
        epoch = load_optimizer(optimizer, source.shard("state"))
    steps_per_epoch = -(-len(frames) // config.train.batch_size)
    names = load_space(config.labels).names
    write_whole(out.path / "config.json", student_config(config.model, names, config.data.sensor_height_m, False))

    def checkpoint(epochs_done: int) -> None:
        out.commit("model", student_bytes(network, text))
        out.commit("state", optimizer_bytes(optimizer, epochs_done))

    targets = target_source(config.objectives.semantic.targets, pixels, points, config)
    log = TrainingLog(out.path, epoch * steps_per_epoch, config.train.epochs * steps_per_epoch, config.run.progress)
    try:
        train(
            network,
            text,
            training_batches(frames, targets, config, epoch),
            steps_per_epoch,
            config.train,
            config.objectives,
            optimizer,
            log,
            checkpoint,
            epoch,
        )
    finally:
        log.close()


def open_student(config: Config) -> tuple[Trained, str]:
    """The student that ``student=`` names, on the device, and its digest.

    Raises:
        BadInput: it is not whole, or was made for other classes than ``labels`` has.
    """
    if not config.student:
        raise BadInput("student", "is not set", "give student=FOLDER, as printed by tools/pretrain.py")
    artifact = Artifact.at(config.student, "student")
    trained = load_student(artifact.path)
    names = load_space(config.labels).names
    if trained.names != names:
        raise BadInput(artifact.path, f"knows the classes {', '.join(trained.names)}", f"labels has {', '.join(names)}")
    trained.student.to(device())
    return trained, str(artifact.manifest()["digest"])


# --- predictions -----------------------------------------------------------------------------------------------------


class PredictWorker:
    """Gives every raw point of a scene's key sweeps a class."""

    def __init__(self, config: Config, index: Artifact, trained: Trained) -> None:
        data = dataclasses.replace(config.data, sensor_height_m=trained.sensor_height_m)
        self.config = dataclasses.replace(config, model=trained.model, data=data)
        self.index, self.trained = index, trained

    def __call__(self, scene: str) -> Shard:
        """The predictions of a scene's key sweeps."""
        arrays: dict[str, np.ndarray] = {}
        skipped: list[Skip] = []
        for frame in scene_frames(self.index, self.config, scene):
            try:
                arrays[frame.id] = self.predict(frame)
            except BadInput as error:
                skipped.append(skip_or_raise(error, frame, self.config))
        return Shard(arrays, skipped, {"frames": len(arrays), "points": sum(map(len, arrays.values()))})

    def predict(self, frame: Frame) -> UInt8[np.ndarray, " n"]:
        """Class of every raw row; rows that are no points (``data.bad_share``) get the frame's most frequent one."""
        cloud = key_cloud(frame, self.config, 0.0)
        batch = prediction_batch(frame, cloud, self.config).to(device())
        label = self.trained.student.classify(batch, self.trained.text.to(device())).cpu().numpy()
        rows = frame.sweeps[0].points.bytes // (4 * self.config.data.columns)
        full = np.full(rows, np.bincount(label).argmax(), np.uint8)
        full[cloud.source] = label
        return full


def make_predictions(config: Config, index: Artifact) -> Artifact:
    """Predicts the frames of ``data.eval`` with the student that ``student=`` names."""
    trained, digest = open_student(config)
    predictions = Artifact.of(config.store, "predictions", {"student": digest, **config.groups("on_bad")}, [index])
    scenes = scenes_of(index, "eval")
    return run_stage(
        predictions, scenes, lambda: PredictWorker(config, index, trained), config, _of_eval(index, scenes)
    )


def _of_eval(artifact: Artifact, scenes: list[str]) -> list[Skip]:
    return [skip for skip in artifact.skipped() if skip.scene in scenes]


def labelled_frames(config: Config, index: Artifact, said: Artifact) -> Iterator[tuple[Frame, UInt8[np.ndarray, " n"]]]:
    """The frames of ``data.eval`` with the labels that predictions or fused points give them."""
    lost = {skip.frame for skip in said.skipped()}
    for scene in scenes_of(index, "eval"):
        shard = said.arrays(scene)
        for frame in scene_frames(index, config, scene):
            if frame.id not in lost:
                fused = said.stage == "points"
                yield frame, read_points(said, frame).label if fused else shard.get_tensor(frame.id)


def truth_of(frame: Frame, space: LabelSpace, config: Config) -> UInt8[np.ndarray, " n"] | None:
    """True class of every raw row of a frame's key sweep, 255 = ignored; None where the frame has no labels.

    Raises:
        BadInput: the label file is not the indexed one, or has an id that the label space does not know.
    """
    if frame.labels is None:
        return None
    raw = DATASETS[config.data.kind].labels(frame.labels.read())
    return space.from_raw(raw, frame.labels.path)


# --- scores ----------------------------------------------------------------------------------------------------------


def make_scores(config: Config, index: Artifact, said: Artifact) -> Artifact:
    """Scores predictions or fused points against the truth of ``data.eval``: ``scores-<id>/scores.json``.

    Raises:
        BadInput: no frame has truth, or a label file does not fit.
    """
    started = time.time()
    space = load_space(config.labels)
    scoring = load_scoring(config.labels, space)
    key = {
        **config.groups("absent_class"),
        "classes": [scoring.names, scoring.of_class.tolist()],
        "said": said.manifest()["digest"],
    }
    scores = Artifact.of(config.store, "scores", key, [index, said], suffix=".json")
    if scores.whole and scores.done("scores", config.verify):
        return scores
    true_class, said_class = np.full(256, NONE, np.uint8), np.full(256, NONE, np.uint8)
    true_class[: len(space)] = scoring.of_class
    said_class[: len(space)] = np.where(scoring.of_class == NONE, OTHER, scoring.of_class)
    confusion, frames = Confusion.empty(len(scoring.names)), 0
    for frame, label in labelled_frames(config, index, said):
        truth = truth_of(frame, space, config)
        if truth is None:
            continue
        if len(truth) != len(label):
            raise BadInput(frame.id, f"has {len(truth)} true labels and {len(label)} predicted ones")
        confusion += Confusion.of(true_class[truth], said_class[label], len(scoring.names))
        frames += 1
    if not frames:
        raise BadInput("data.eval", "no frame has labels to score against", "nuScenes: unpack lidarseg, or score val")
    tree = _scores(config, confusion, frames, scoring.names, said)
    scores.commit("scores", json.dumps(tree, indent=1).encode())
    scores.finish(["scores"], config, started, _of_eval(said, scenes_of(index, "eval")))
    return scores


def _scores(
    config: Config, confusion: Confusion, frames: int, names: tuple[str, ...], said: Artifact
) -> dict[str, Any]:
    absent = config.absent_class

    def numbers(counts: Confusion) -> dict[str, Any]:
        iou = [None if np.isnan(value) else float(value) for value in counts.iou(absent)]
        return {
            "miou": counts.miou(absent),
            "iou": dict(zip(names, iou, strict=True)),
            "accuracy": counts.accuracy,
            "points": counts.points,
        }

    tree = {
        **numbers(confusion),
        "frames": frames,
        "confusion": confusion.counts.tolist(),
        "classes": list(names),
        "protocol": "annotation-free",
        "split": list(config.data.eval),
        "absent_class": absent,
        "labels_of": said.id,
        "student": config.student,
        "config": dataclasses.asdict(config),
    }
    if said.stage == "points":
        tree["covered"] = numbers(confusion.covered())
    return tree

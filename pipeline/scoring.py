"""The scoring stages: predictions and scores. Configuration and artifacts in, an artifact out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clipsweep.distill.checkpoint import Trained, load_student
from clipsweep.distill.metrics import OTHER, Confusion
from clipsweep.pipeline.boxes import BoxTruth, make_boxes
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets.rows import Skip
from clipsweep.pipeline.executor import run_stage
from clipsweep.pipeline.labels import BOXES, LabelSpace, Scoring, load_scoring, load_space, load_truth
from clipsweep.pipeline.loaders import (
    note_older,
    raw_rows,
    read_points,
    read_truth,
    skip_or_raise,
    usable_cloud,
)
from clipsweep.pipeline.settings import plain
from clipsweep.pipeline.stages.index import cut_scenes, find_parts, scene_frames, scenes_of
from clipsweep.pipeline.stages.pixels import device
from clipsweep.pipeline.store import Artifact, Part, digest_files
from clipsweep.pipeline.training import READS_CLOUDS, finished_student
from clipsweep.pipeline.work import Shard
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Frame

# --- predictions -----------------------------------------------------------------------------------------------------


def open_student(config: Config, student: str) -> tuple[Trained, str]:
    """The student in a folder, on the device, and its digest.

    Raises:
        BadInput: it is not whole, or was made for other classes than ``labels`` has.
    """
    if not student:
        raise BadInput("student", "is not set", "give student=FOLDER, as printed by tools/pretrain.py")
    artifact = finished_student(student)
    trained = load_student(artifact.path)
    names = load_space(config.labels).names
    if trained.names != names:
        raise BadInput(artifact.path, f"knows the classes {', '.join(trained.names)}", f"labels has {', '.join(names)}")
    if not len(trained.text) and trained.student.classifier is None:
        raise BadInput(artifact.path, "has learnt features and no names", "fine-tune it first: tools/finetune.py")
    trained.student.to(device())
    return trained, digest_files([artifact.shard("model"), artifact.path / "config.json"])


def open_points(config: Config, index: Artifact, folder: str) -> Artifact:
    """The fused points of the scenes of ``data.eval`` in a folder.

    Raises:
        BadInput: they are not whole, or their classes are not those of ``labels``.
    """
    points = Artifact.at(folder, "points")
    made, names = points.manifest()["key"].get("classes"), list(load_space(config.labels).names)
    if made != names:
        said = f"has the classes {', '.join(made or ())}"
        raise BadInput(folder, said, f"labels has {', '.join(names)}: score, draw and export it with the same")
    return find_parts(points, index, scenes_of(index, "eval"))


FRAMES = 64
"""Key frames of a shard of predictions."""


class PredictWorker:
    """Gives every raw point of some key sweeps of a scene a class."""

    def __init__(self, config: Config, index: Artifact, student: str, parts: Sequence[Part]) -> None:
        self.config = config
        self.index = index
        self.parts = {part.shard: part for part in parts}
        self.trained, _ = open_student(config, student)

    def __call__(self, name: str) -> Shard:
        """The predictions of a part's key sweeps."""
        part = self.parts[name]
        wanted = set(part.frames)
        arrays: dict[str, np.ndarray] = {}
        skipped: list[Skip] = []
        for frame in scene_frames(self.index, self.config, part.scene):
            if frame.id not in wanted:
                continue
            try:
                arrays[frame.id] = self.predict(frame, partial(note_older, skipped, part.scene))
            except BadInput as error:
                skipped.append(skip_or_raise(error, frame, self.config))
        counts = {"frames": len(arrays), "points": sum(map(len, arrays.values()))}
        return Shard(arrays, skipped, counts, part.facts())

    def predict(self, frame: Frame, left_out: Callable[[BadInput], None]) -> UInt8[np.ndarray, " n"]:
        """Class of every raw row; rows that are no points (``data.bad_share``) get the frame's most frequent one."""
        cloud = usable_cloud(frame, self.config, 0.0, self.trained.model.sweeps, left_out)
        height_m = self.config.data.sensor_height_m  # above the ground of the data's own rig
        label = self.trained.predict(cloud.xyz, cloud.intensity, cloud.age_s, height_m)
        key = cloud.sweep == 0
        full = np.full(raw_rows(frame, self.config), np.bincount(label[key]).argmax(), np.uint8)
        full[cloud.source[key]] = label[key]
        return full


def make_predictions(config: Config, index: Artifact, student: str) -> Artifact:
    """Predicts the frames of ``data.eval`` with the student in a folder."""
    _, digest = open_student(config, student)
    key = {"student": digest, **config.values(*READS_CLOUDS)}
    parts = cut_scenes(index, "eval", frames=FRAMES)
    scenes = {part.scene for part in parts}
    lost = [skip for skip in index.skipped() if skip.scene in scenes]
    predictions = Artifact.of(config.store, "predictions", key).holding(parts, lost)
    worker = partial(PredictWorker, config, index, student, parts)
    return run_stage(predictions, predictions.shards(), worker, config, gpu=True)


def labelled_frames(config: Config, index: Artifact, said: Artifact) -> Iterator[tuple[Frame, UInt8[np.ndarray, " n"]]]:
    """The frames of ``data.eval`` with the labels that predictions or fused points give them.

    Raises:
        BadInput: all frames were left out.
    """
    lost = {skip.frame: skip.reason for skip in said.skipped()}
    some = False
    for scene in scenes_of(index, "eval"):
        for frame in scene_frames(index, config, scene):
            if frame.id not in lost:
                some = True
                yield frame, _read_labels(said, frame)
    if lost and not some:
        raise BadInput("data.eval", f"all frames were left out, first: {next(iter(lost.values()))}")


def _read_labels(labels: Artifact, frame: Frame) -> UInt8[np.ndarray, " n"]:
    if labels.stage == "points":
        return read_points(labels, frame).label
    return labels.arrays(labels.shard_of(frame.id)).get_tensor(frame.id)


# --- scores ----------------------------------------------------------------------------------------------------------


def make_scores(config: Config, index: Artifact, said: Artifact, student: str = "") -> Artifact:
    """Scores predictions or fused points against the truth of ``data.eval``: ``scores-<id>/scores.json``.

    With ``labels.truth=boxes`` the truth of a class is the points in its annotated boxes. Points in
    no box have no class; those that are labelled as one of the table's count against it. Objects far
    away may have no box, and a box holds some points of the ground beneath it: both count as errors,
    also of a perfect labelling.

    Args:
        config: labels, store and what to do with bad frames.
        index: the frames.
        said: predictions or fused points.
        student: folder of the student that predicted; empty for fused points.

    Raises:
        BadInput: no frame has truth, or a label file does not fit.
    """
    started = time.time()
    space, truths = load_space(config.labels), load_truth(config.labels)
    scoring = load_scoring(config.labels, space, truths)
    key = {
        **config.values("absent_class", "on_bad"),
        "classes": [scoring.names, scoring.of_class.tolist(), scoring.of_truth.tolist(), truths.digest()],
        "labels": said.content(),
    }
    inputs = [said]
    if config.labels.truth == BOXES:
        key["boxes"] = truths.boxes
        inputs.append(make_boxes(config, index))
    scores = Artifact.of(config.store, "scores", key, inputs, suffix=".json")
    if scores.whole and scores.done("scores", config.verify):
        return scores
    truth_of = truth_reader(config, index, truths, scoring)
    said_class = np.full(256, NONE, np.uint8)
    said_class[: len(space)] = np.where(scoring.of_class == NONE, OTHER, scoring.of_class)
    confusion, frames = Confusion.empty(len(scoring.names)), 0
    skipped = said.skipped()
    for frame, label in labelled_frames(config, index, said):
        try:
            truth = truth_of(frame)
        except BadInput as error:
            skipped.append(skip_or_raise(error, frame, config))
            continue
        if truth is None:
            continue
        if len(truth) != len(label):
            raise BadInput(frame.id, f"has {len(truth)} true labels and {len(label)} predicted ones")
        confusion += Confusion.of(truth, said_class[label], len(scoring.names))
        frames += 1
    if not confusion.points and skipped:
        raise BadInput("data.eval", f"all frames were left out, first: {skipped[0].reason}")
    if not confusion.points and config.labels.truth == BOXES:
        problem = "no point lies in an annotated box of a scored class"
        raise BadInput("data.eval", problem, "score annotated scenes")
    if not confusion.points:
        raise BadInput("data.eval", "no frame has labels to score against", "unpack its labels, or score val")
    tree = _scores(config, confusion, frames, scoring.names, said, student)
    scores.commit("scores", json.dumps(tree, indent=1).encode())
    scores.finish(["scores"], config, started, skipped)
    return scores


def truth_reader(
    config: Config, index: Artifact, truths: LabelSpace, scoring: Scoring
) -> Callable[[Frame], UInt8[np.ndarray, " n"] | None]:
    """Reads a frame's true classes of the table, from annotated boxes or from its label file."""
    of_truth = np.full(256, NONE, np.uint8)
    of_truth[: len(truths)] = scoring.of_truth
    if config.labels.truth == BOXES:
        class_of = {category: int(of_truth[own]) for category, own in truths.boxes.items()}
        return BoxTruth(config, make_boxes(config, index), class_of)

    def from_file(frame: Frame) -> UInt8[np.ndarray, " n"] | None:
        truth = read_truth(frame, truths, config)
        return None if truth is None else of_truth[truth]

    return from_file


def _protocol(said: Artifact, student: str) -> str:
    """How many human labels went into what is scored."""
    if said.stage == "points":
        return "annotation-free"
    manifest = Artifact.at(student, "student").manifest()
    return str(manifest["protocol"]) if manifest["used_labels"] else "annotation-free"


def _knowledge(labels: Artifact, student: str) -> list[str]:
    """What people know that went into labels beside true labels, as texts for a table."""
    made = labels if labels.stage == "points" else Artifact.at(student, "student")
    settings = made.manifest()["config"]
    fused = made.stage == "points" or settings["objectives"]["semantic"]["targets"] == "points"
    return ["limits of classes"] if fused and settings["fusion"].get("limits", True) else []


def _scores(
    config: Config,
    confusion: Confusion,
    frames: int,
    names: tuple[str, ...],
    said: Artifact,
    student: str,
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
        "protocol": _protocol(said, student),
        "human_knowledge": _knowledge(said, student),
        "split": list(config.data.eval),
        "absent_class": absent,
        "labels_of": said.id,
        "student": student,
        "config": plain(config),
    }
    if config.labels.truth == BOXES:
        tree["in_no_box"] = dict(zip(names, confusion.background.tolist(), strict=True))
    if said.stage == "points":
        tree["covered"] = numbers(confusion.covered())
    return tree

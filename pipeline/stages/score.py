"""Evaluation stage: mIoU of predictions, or fused point labels, against ground truth."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clipsweep.distill.metrics import OTHER, Confusion
from clipsweep.pipeline.artifacts.read import all_left_out, read_truth, skip_or_raise
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.labels import (
    BOXES,
    LabelSpace,
    Scoring,
    load_scoring,
    load_space,
    load_truth,
)
from clipsweep.pipeline.settings import plain
from clipsweep.pipeline.stages.boxes import BoxTruth, make_boxes
from clipsweep.pipeline.stages.index import scene_digests
from clipsweep.pipeline.stages.labelled import labelled_frames
from clipsweep.pipeline.stages.predict import label_protocol, training_scenes
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Frame

# --- scores ---------------------------------------------------------------------------------------


_LAYOUT = 3
"""Of ``scores.json``; 2 has a confusion matrix for each scene, 3 the objects of boxes."""


def make_scores(
    config: Config, index: Artifact, predicted: Artifact, student: str = ""
) -> Artifact:
    """Evaluates predictions or fused labels on ``data.eval``: mIoU, IoU of each class, accuracy.

    They are written to ``scores-<id>/scores.json``.

    With ``labels.truth=boxes`` the ground truth of a class is the points in its annotated boxes. A
    point outside all boxes that is predicted as an evaluated class is a false positive. Objects far
    away may have no box, and a box holds some points of the ground beneath it: both count as
    errors, also of a perfect labelling. The objects whose most frequent label is right are counted
    too.

    Args:
        config: labels, store and what to do with bad frames.
        index: the frames.
        predicted: predictions or fused points.
        student: folder of the student that predicted; empty for fused points.

    Raises:
        BadInput: no frame has truth, or a label file does not fit.
    """
    started = time.time()
    space = load_space(config.labels)
    truths = load_truth(config.labels)
    scoring = load_scoring(config.labels, space, truths)
    key = {
        **config.values("absent_class", "on_bad"),
        "classes": [
            scoring.names,
            scoring.of_class.tolist(),
            scoring.of_truth.tolist(),
            truths.digest(),
        ],
        "labels": predicted.content(),
        "layout": _LAYOUT,
        "trained_on_eval": _trained_on_eval(config, index, predicted, student),
    }
    inputs = [predicted]
    if config.labels.truth == BOXES:
        key["boxes"] = truths.boxes
        inputs.append(make_boxes(config, index))
    scores = Artifact.of(config.store, "scores", key, inputs, suffix=".json")
    if scores.whole and scores.done("scores", config.verify):
        return scores
    truth_of = truth_reader(config, index, truths, scoring)
    table_class = np.full(256, NONE, np.uint8)
    table_class[: len(space)] = np.where(scoring.of_class == NONE, OTHER, scoring.of_class)
    of_scene: dict[str, Confusion] = {}
    objects = np.zeros((len(scoring.names), 2), np.int64)
    frames = 0
    skipped = predicted.skipped()
    for frame, label in labelled_frames(config, index, predicted):
        try:
            truth = truth_of(frame)
        except BadInput as error:
            skipped.append(skip_or_raise(error, frame, config))
            continue
        if truth is None:
            continue
        if len(truth) != len(label):
            raise BadInput(
                frame.id, f"has {len(truth)} true labels and {len(label)} predicted ones"
            )
        if isinstance(truth_of, BoxTruth):
            objects += truth_of.objects(frame, label, table_class, len(objects))
        found = Confusion.of(truth, table_class[label], len(scoring.names))
        of_scene[frame.scene] = of_scene[frame.scene] + found if frame.scene in of_scene else found
        frames += 1
    confusion = sum(of_scene.values(), Confusion.empty(len(scoring.names)))
    if not frames and any(skip.frame is not None for skip in skipped):
        raise all_left_out("data.eval", skipped)
    if not confusion.points and config.labels.truth == BOXES:
        problem = "no point lies in an annotated box of a scored class"
        raise BadInput("data.eval", problem, "score annotated scenes")
    if not confusion.points:
        cure = "unpack its labels, or score val"
        if DATASETS[config.data.kind].boxes is not None and truths.boxes:
            cure += ", or score against annotated 3D boxes with labels.truth=boxes"
        raise BadInput("data.eval", "no frame has labels to score against", cure)
    tree = _scores(config, confusion, frames, scoring.names, predicted, student)
    tree["scenes"] = {scene: counts.tree() for scene, counts in of_scene.items()}
    tree["trained_on_eval"] = key["trained_on_eval"]
    if isinstance(truth_of, BoxTruth):
        tree["objects"] = {
            name: {"objects": int(count), "right": int(right)}
            for name, (count, right) in zip(scoring.names, objects, strict=True)
        }
    scores.commit("scores", json.dumps(tree, indent=1).encode())
    facts = {"miou": tree["miou"], "student": Path(student).name}
    scores.finish(["scores"], config, started, skipped, **facts)
    return scores


def truth_reader(
    config: Config, index: Artifact, truths: LabelSpace, scoring: Scoring
) -> Callable[[Frame], UInt8[np.ndarray, " n"] | None]:
    """Reader of a frame's ground truth, from annotated 3D boxes or from its label file."""
    of_truth = np.full(256, NONE, np.uint8)
    of_truth[: len(truths)] = scoring.of_truth
    if config.labels.truth == BOXES:
        class_of = {category: int(of_truth[own]) for category, own in truths.boxes.items()}
        return BoxTruth(config, make_boxes(config, index), class_of)

    def from_file(frame: Frame) -> UInt8[np.ndarray, " n"] | None:
        truth = read_truth(frame, truths, config)
        return None if truth is None else of_truth[truth]

    return from_file


def _protocol(predicted: Artifact, student: str) -> str:
    """Label protocol of scores: annotation-free, or the share of human labels used."""
    if student:
        return label_protocol(student)
    return str(predicted.manifest()["key"].get("protocol", "annotation-free"))


def _trained_on_eval(config: Config, index: Artifact, labels: Artifact, student: str) -> bool:
    """Whether the student that gave the labels was trained on a scene that is scored.

    A scene of the same name counts if its rows in the index are the same, or its data root: the
    demo's scenes have nuScenes' names.
    """
    made = Artifact.at(student, "student") if student else labels
    trained = training_scenes(student) if student else made.manifest()["key"].get("trained_on", {})
    same_root = made.manifest()["config"]["data"]["root"] == config.data.root
    scored = scene_digests(index, "eval")
    return any(name in trained and (same_root or trained[name] == scored[name]) for name in scored)


def _class_priors(labels: Artifact, student: str) -> bool:
    """Whether class priors set by hand (``fusion.limits``) went into the labels."""
    made = Artifact.at(student, "student") if student else labels
    settings = made.manifest()["config"]
    fused = made.stage == "points" or settings["objectives"]["semantic"]["targets"] == "points"
    return fused and bool(settings["fusion"].get("limits", True))


def _uses_later_frames(labels: Artifact) -> bool:
    """Whether labels of a key frame were made from frames after it too, as no car could."""
    settings = labels.manifest()["config"]
    if labels.stage != "points":
        return False
    if _by_student(labels):
        return float(settings["consolidation"]["future_s"]) > 0
    return float(settings["fusion"]["window_s"]) > 0


def _by_student(labels: Artifact) -> bool:
    """Whether point labels were given by a student, to every point."""
    return "student" in labels.manifest()["key"]


def _scores(
    config: Config,
    confusion: Confusion,
    frames: int,
    names: tuple[str, ...],
    predicted: Artifact,
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
        "protocol": _protocol(predicted, student),
        "class_priors": _class_priors(predicted, student),
        "uses_later_frames": _uses_later_frames(predicted),
        "split": list(config.data.eval),
        "absent_class": absent,
        "labels_of": predicted.id,
        "student": student,
        "config": plain(config),
    }
    if config.labels.truth == BOXES:
        tree["in_no_box"] = dict(zip(names, confusion.background.tolist(), strict=True))
    if predicted.stage == "points" and not _by_student(predicted):
        tree["covered"] = numbers(confusion.covered())
    return tree

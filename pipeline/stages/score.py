"""Evaluation stage: mIoU of predictions, or fused point labels, against ground truth."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.artifacts.read import all_left_out
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.labels import (
    BOXES,
    load_scoring,
    load_space,
    load_truth,
)
from clipsweep.pipeline.settings import plain
from clipsweep.pipeline.stages.boxes import make_boxes
from clipsweep.pipeline.stages.index import scene_digests
from clipsweep.pipeline.stages.predict import label_protocol, training_scenes
from clipsweep.pipeline.stages.truth import scored_frames
from clipsweep.projection.errors import BadInput

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
    of_scene: dict[str, Confusion] = {}
    objects = np.zeros((len(scoring.names), 2), np.int64)
    frames = 0
    skipped = predicted.skipped()
    for scored in scored_frames(config, index, predicted, skipped):
        scene = scored.frame.scene
        if scored.objects is not None:
            objects += scored.objects
        of_scene[scene] = of_scene.get(scene, Confusion.empty(len(scoring.names))) + (
            Confusion.of(scored.truth, scored.predicted, len(scoring.names))
        )
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
    if config.labels.truth == BOXES:
        tree["objects"] = {
            name: {"objects": int(count), "right": int(right)}
            for name, (count, right) in zip(scoring.names, objects, strict=True)
        }
    scores.commit("scores", json.dumps(tree, indent=1).encode())
    facts = {"miou": tree["miou"], "student": Path(student).name}
    scores.finish(["scores"], config, started, skipped, **facts)
    return scores


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

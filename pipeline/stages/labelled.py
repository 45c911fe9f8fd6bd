"""Opens the labels of key frames, to score, draw or export: predictions or pseudo-labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from clipsweep.pipeline.artifacts.read import all_left_out, read_points
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.stages.consolidate import make_consolidated
from clipsweep.pipeline.stages.index import find_parts, require_scenes, scene_frames, scenes_of
from clipsweep.pipeline.stages.predict import make_predictions
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Frame


def open_points(config: Config, index: Artifact, folder: str, role: str = "eval") -> Artifact:
    """Opens pseudo-labels of the scenes of ``data.eval``, or of a ``role``, from their folder.

    Raises:
        BadInput: they are not whole, or their classes are not those of ``labels``.
    """
    points = Artifact.at(folder, "points")
    made = points.manifest()["key"].get("classes")
    names = list(load_space(config.labels).names)
    if made != names:
        problem = f"has the classes {', '.join(made or ())}"
        raise BadInput(
            folder,
            problem,
            f"labels has {', '.join(names)}: score, draw and export it with the same",
        )
    return find_parts(points, index, scenes_of(index, role))


def open_labels(
    config: Config, index: Artifact, student: str, points: str, consolidate: bool = False
) -> Artifact:
    """Opens labels to score, draw or export: a student's predictions, or pseudo-labels.

    Args:
        config: everything else.
        index: of the frames; those of ``data.eval`` are labelled.
        student: folder of a student, which predicts them now where it has not yet.
        points: folder of pseudo-labels; one of the two is given.
        consolidate: the student's predictions are consolidated over views and time.

    Raises:
        BadInput: both are given, no scene of ``data.eval`` is there, or as ``open_points`` and
            ``open_student``.
    """
    if points and student:
        raise BadInput("pseudo_labels", "is given, and student too", "give one of them")
    if points and consolidate:
        problem = "is given, and pseudo_labels too"
        raise BadInput("consolidate", problem, "give student=FOLDER instead")
    require_scenes(config, index, "eval")
    if points:
        return open_points(config, index, points)
    if consolidate:
        return make_consolidated(config, index, student, "eval")
    return make_predictions(config, index, student)


def labelled_frames(
    config: Config, index: Artifact, predicted: Artifact
) -> Iterator[tuple[Frame, UInt8[np.ndarray, " n"]]]:
    """Key frames of ``data.eval``, each with the predicted or fused label of every raw point.

    Raises:
        BadInput: all frames were left out.
    """
    skipped = predicted.skipped()
    lost = {skip.frame for skip in skipped}
    some = False
    for scene in scenes_of(index, "eval"):
        for frame in scene_frames(index, config, scene):
            if frame.id not in lost:
                some = True
                yield frame, read_labels(predicted, frame)
    if skipped and not some:
        raise all_left_out("data.eval", skipped)


def pixels_behind(config: Config, index: Artifact, made: str) -> Artifact:
    """Opens the pixel labels of ``data.eval`` that a student or pseudo-labels were made from.

    Args:
        config: its store.
        index: of the frames.
        made: folder of the student or of the pseudo-labels.

    Raises:
        BadInput: there are none, or not in the store, or not of all these scenes.
    """
    inputs = Artifact(Path(made)).manifest()["inputs"]
    if "pixels" not in inputs:
        raise BadInput(made, "was not made from pixel labels")
    pixels = Artifact.at(f"{config.store}/{inputs['pixels']}", "pixels")
    return find_parts(pixels, index, scenes_of(index, "eval"))


def read_labels(labels: Artifact, frame: Frame) -> UInt8[np.ndarray, " n"]:
    """Reads the class of every raw point of a key sweep from predictions or pseudo-labels."""
    if labels.stage == "points":
        return read_points(labels, frame).label
    return labels.arrays(labels.shard_of(frame.id)).get_tensor(frame.id)

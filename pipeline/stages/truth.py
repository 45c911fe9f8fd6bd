"""Ground truth of key frames, to score labels against: from label files or annotated 3D boxes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from clipsweep.distill.metrics import OTHER
from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import read_truth, skip_or_raise
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import (
    BOXES,
    LabelSpace,
    Scoring,
    load_scoring,
    load_space,
    load_truth,
)
from clipsweep.pipeline.stages.boxes import BoxTruth, make_boxes
from clipsweep.pipeline.stages.labelled import labelled_frames
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Frame


@dataclass(frozen=True, eq=False, slots=True)
class ScoredFrame:
    """Key frame with the true and the predicted class of each raw point of its key sweep.

    Attributes:
        frame: the key frame.
        truth: column of the table of scores, 255 = ignored.
        predicted: column, ``OTHER`` for classes that the table does not have, 255 = no label.
        objects: of annotated boxes the number of objects of each class and of those that are right;
            None where the truth is label files.
    """

    frame: Frame
    truth: UInt8[np.ndarray, " n"]
    predicted: UInt8[np.ndarray, " n"]
    objects: Int64[np.ndarray, "classes 2"] | None


def scored_frames(
    config: Config, index: Artifact, labels: Artifact, skipped: list[Skip]
) -> Iterator[ScoredFrame]:
    """Key frames of ``data.eval`` that have labels and truth.

    Args:
        config: labels, and what to do with bad frames.
        index: the frames.
        labels: predictions or fused points.
        skipped: gets a record of each frame whose truth cannot be read.

    Raises:
        BadInput: a label file does not fit, or cannot be read and ``on_bad=fail``.
    """
    space = load_space(config.labels)
    truths = load_truth(config.labels)
    scoring = load_scoring(config.labels, space, truths)
    truth_of = truth_reader(config, index, truths, scoring)
    column = np.full(256, NONE, np.uint8)
    column[: len(space)] = np.where(scoring.of_class == NONE, OTHER, scoring.of_class)
    for frame, label in labelled_frames(config, index, labels):
        try:
            truth = truth_of(frame)
        except BadInput as error:
            skipped.append(skip_or_raise(error, frame, config))
            continue
        if truth is None:
            continue
        if len(truth) != len(label):
            problem = f"has {len(truth)} true labels and {len(label)} predicted ones"
            raise BadInput(frame.id, problem)
        objects = None
        if isinstance(truth_of, BoxTruth):
            objects = truth_of.objects(frame, label, column, len(scoring.names))
        yield ScoredFrame(frame, truth, column[label], objects)


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

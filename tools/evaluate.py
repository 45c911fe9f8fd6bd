"""Evaluates a student, or fused pseudo-labels: mIoU against the ground truth of data.eval.

Every point counts, all around the car. The truth is the data set's label files or, with
labels.truth=boxes, its annotated 3D boxes, as for nuScenes without lidarseg.

usage: python tools/evaluate.py DATA.yaml student=FOLDER [key=value ...]
       python tools/evaluate.py DATA.yaml pseudo_labels=FOLDER [key=value ...]
"""

import json
import sys
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_scoring, load_space, load_truth
from clipsweep.pipeline.reports.tables import mistakes_table, score_table
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.labelled import open_labels
from clipsweep.pipeline.stages.score import make_scores
from clipsweep.pipeline.terminal import say

KEYS = ("data", "labels", "consolidation", "run", "store", "on_bad", "verify", "absent_class")


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/evaluate.py: what to score."""

    student: Annotated[
        str,
        Field(description="folder of a student to score, as printed by pretrain"),
    ] = ""
    pseudo_labels: Annotated[
        str,
        Field(description="folder of pseudo-labels to score instead, as printed by label"),
    ] = ""
    consolidate: Annotated[
        bool,
        Field(
            description="average the student's predictions over views and time "
            "(consolidation.*); with consolidation.future_s=0 over the past alone"
        ),
    ] = False


def run(config: Config, arguments: Arguments) -> Made:
    load_scoring(config.labels, load_space(config.labels), load_truth(config.labels))  # at once
    index = make_index(config)
    predicted = open_labels(
        config, index, arguments.student, arguments.pseudo_labels, arguments.consolidate
    )
    scores = make_scores(config, index, predicted, arguments.student)
    tree = json.loads(scores.shard("scores").read_text())
    say(_table(tree))
    if tree["trained_on_eval"]:
        say("warning: the student was trained on scenes of data.eval; score scenes it has not seen")
    return Made(scores.path, scores.skipped())


def _table(tree: dict) -> str:
    rows = ["mIoU", "accuracy", *tree["classes"]]
    columns = {"all points": {"mIoU": tree["miou"], "accuracy": tree["accuracy"], **tree["iou"]}}
    seen = ", trained on scenes of this split" if tree["trained_on_eval"] else ""
    title = (
        f"{tree['protocol']}{seen}, {', '.join(tree['split'])}: {tree['frames']} frames, "
        f"{tree['points']} points"
    )
    if "objects" in tree:
        columns["objects"] = {
            name: each["right"] / each["objects"] if each["objects"] else None
            for name, each in tree["objects"].items()
        }
        title += " in annotated boxes"
    if tree["class_priors"]:
        title += ", class priors set by hand"
    if tree["uses_later_frames"]:
        title += ", uses later frames"
    if "covered" in tree:
        part = tree["covered"]
        columns["covered"] = {"mIoU": part["miou"], "accuracy": part["accuracy"], **part["iou"]}
        title += f", {100 * part['points'] / tree['points']:.1f} % covered"
    found = Confusion(np.array(tree["confusion"]), np.zeros(len(tree["classes"]), np.int64))
    texts = [
        score_table(f"IoU %, {title}", columns, rows),
        mistakes_table({"all points": found}, tree["classes"]),
    ]
    if "objects" in columns:
        texts.insert(1, "objects: annotated ones whose most frequent label is right, in %")
    return "\n".join(texts)


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments))

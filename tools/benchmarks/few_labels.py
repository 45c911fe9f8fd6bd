"""Experiment: label-efficient fine-tuning against training from scratch, at equal optimiser steps.

Students are scored on the demo's test streets, which no setting was chosen on, with a paired
bootstrap over their scenes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.reports.bootstrap import paired_gain
from clipsweep.pipeline.stages.consolidate import make_consolidated
from clipsweep.pipeline.stages.dataset import training_steps
from clipsweep.pipeline.stages.finetune import make_finetuned
from clipsweep.pipeline.stages.fit import training_frames
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.labelled import open_labels
from clipsweep.pipeline.stages.pretrain import make_pretrained
from clipsweep.pipeline.stages.protocols import labelled_subset
from clipsweep.tools.benchmarks.experiments import SEEDS, Line, open_data, score, seed_mean
from clipsweep.tools.benchmarks.results import Job

TEST = "demo_test"
"""Recipe of the demo's test streets."""
SHARES = ("1", "5", "10", "25", "100")
STEPS = 300
"""Optimiser steps of a fine-tuning, whatever the share of the labels, but for all labels."""
STEPS_ALL = 640

Trees = Sequence[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train a student on a share of the labels.

    Attributes:
        name: in the table.
        pretrained: starts from the annotation-free student of its seed, else from random weights,
            with the steps of that student's pre-training on top.
        unlabelled: each step also learns a batch of pseudo-labels, consolidated predictions of the
            annotation-free student.
    """

    name: str
    pretrained: bool
    unlabelled: bool


OURS = Arm("pre-trained, pseudo-labels beside", pretrained=True, unlabelled=True)
SCRATCH = Arm("random weights, labels alone", pretrained=False, unlabelled=False)
ARMS = (
    OURS,
    SCRATCH,
    Arm("pre-trained, labels alone", pretrained=True, unlabelled=False),
    Arm("random weights, pseudo-labels beside", pretrained=False, unlabelled=True),
)
START = "no labels"


def few_labels(arguments: Sequence[str]) -> Iterator[Job]:
    """Experiment: fine-tuning on shares of the labels, each of ``ARMS`` with all ``SEEDS``."""

    @functools.cache
    def start() -> Trees:
        return [scored(given, pretrained(given)) for given in of_seeds(arguments)]

    @functools.cache
    def trained(protocol: str, arm: Arm) -> Trees:
        return [scored(given, _tuned(given, protocol, arm)) for given in of_seeds(arguments)]

    def line(protocol: str, arm: Arm) -> Line:
        trees = trained(protocol, arm)
        gains = [paired_gain(trees, start(), START)]
        if arm is OURS:
            gains.append(paired_gain(trees, trained(protocol, SCRATCH), SCRATCH.name))
        return replace(seed_mean(f"{protocol}, {arm.name}", trees), gains=gains)

    yield Job(START, [*arguments, TEST], lambda: seed_mean(START, start()))
    for share in SHARES:
        for unit in ("frame", "scene") if share != "100" else ("scene",):
            protocol = f"{unit}@{share}%"
            for arm in ARMS if share != "100" else (OURS, SCRATCH):
                given = [*arguments, f"protocol={protocol}"]
                yield Job(f"{protocol}, {arm.name}", given, functools.partial(line, protocol, arm))


def of_seeds(arguments: Sequence[str]) -> list[list[str]]:
    """Settings with each of ``SEEDS``."""
    return [[*arguments, f"seed={seed}"] for seed in SEEDS]


def pretrained(arguments: Sequence[str]) -> str:
    """Pre-trains a student; gives its folder."""
    return str(make_pretrained(open_data(arguments)).path)


def _tuned(arguments: Sequence[str], protocol: str, arm: Arm) -> str:
    """Trains a student of an arm; gives its folder."""
    config = open_data(arguments)
    index = make_index(config)
    frames = training_frames(index, config)
    labelled = labelled_subset(protocol, frames)
    steps = STEPS_ALL if len(labelled) == len(frames) else STEPS
    if not arm.pretrained:
        steps += training_steps(config, len(frames))
    epochs = round(steps * config.train.batch_size * config.train.accumulate / len(labelled))
    kind = "consolidated" if arm.unlabelled else "none"
    given = [*arguments, f"protocol={protocol}", f"train.epochs={epochs}"]
    tuning = load_config([*given, f"finetune.unlabelled={kind}"])
    before = pretrained(arguments)
    points = make_consolidated(tuning, index, before, "train") if arm.unlabelled else None
    source = before if arm.pretrained else "none"
    return str(make_finetuned(tuning, source, str(points.path) if points else "").path)


def scored(arguments: Sequence[str], student: str, consolidate: bool = False) -> dict[str, Any]:
    """Scores a student on the test streets; of other data than the demo, on their own split.

    Args:
        arguments: settings of the student's data.
        student: its folder.
        consolidate: its predictions are consolidated over views and time.
    """
    elsewhere = any(argument.startswith("data.root=") for argument in arguments)
    config = open_data(arguments if elsewhere else [*arguments, TEST])
    index = make_index(config)
    return score(config, index, open_labels(config, index, student, "", consolidate), student)

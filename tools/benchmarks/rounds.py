"""Experiment: annotation-free students after one and after two rounds, at equal optimiser steps.

Students are scored on the demo's test streets, which no setting was chosen on, as they are and with
their predictions consolidated over views and time, with a paired bootstrap over the scenes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.reports.bootstrap import paired_gain
from clipsweep.tools.benchmarks.experiments import Line, seed_mean
from clipsweep.tools.benchmarks.few_labels import Trees, of_seeds, pretrained, scored
from clipsweep.tools.benchmarks.results import Job

LIMITS = {"with class priors": [], "without class priors": ["fusion.limits=false"]}
"""Whether the labels to learn from know where a class can be."""
ONE = "one round"
LONGER = "one round, the steps of two"
TWO = "two rounds"
SINGLE = "one pass"
CONSOLIDATED = "consolidated"


def rounds(arguments: Sequence[str]) -> Iterator[Job]:
    """Experiment: what a second round of self-training gives, and consolidated predictions."""
    epochs = load_config(arguments).train.epochs
    arms = {ONE: [], LONGER: [f"train.epochs={2 * epochs}"], TWO: ["rounds=2"]}

    def settings(limits: str, arm: str) -> list[str]:
        return [*arguments, *LIMITS[limits], *arms[arm]]

    @functools.cache
    def trained(limits: str, arm: str, reading: str) -> Trees:
        return [
            scored(given, pretrained(given), consolidate=reading == CONSOLIDATED)
            for given in of_seeds(settings(limits, arm))
        ]

    def line(name: str, limits: str, arm: str, reading: str) -> Line:
        trees = trained(limits, arm, reading)
        others = [] if arm == ONE and reading == SINGLE else [(ONE, SINGLE)]
        others += [(LONGER, reading)] if arm == TWO else []
        gains = [paired_gain(trees, trained(limits, *other), ", ".join(other)) for other in others]
        return replace(seed_mean(name, trees), gains=gains)

    for limits in LIMITS:
        for arm in arms:
            for reading in (SINGLE, CONSOLIDATED):
                name = f"{arm}, {reading}, {limits}"
                make = functools.partial(line, name, limits, arm, reading)
                yield Job(name, settings(limits, arm), make)

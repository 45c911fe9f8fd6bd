"""Labels of a run with their scores: what the sections of a report are made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.reports.bootstrap import iou_gains, iou_intervals
from clipsweep.pipeline.reports.html.breakdown import Breakdown, break_down
from clipsweep.pipeline.stages.predict import label_protocol
from clipsweep.projection.errors import BadInput

_WORST = 3
"""Classes that the head of the report names."""


@dataclass(frozen=True, eq=False)
class Run:
    """Labels of the frames of ``data.eval`` and what is known of how they were made.

    Attributes:
        labels: predictions or pseudo-labels.
        student: folder of the student that gave them; empty for fused pixel labels.
    """

    labels: Artifact
    student: str

    @property
    def name(self) -> str:
        """Id of the student, or of the pseudo-labels."""
        return Path(self.student).name if self.student else self.labels.id

    @cached_property
    def kind(self) -> str:
        """What the labels are, in words."""
        if not self.student:
            return "pseudo-labels"
        how = ", consolidated over views and time" if self.labels.stage == "points" else ""
        return f"predictions of a student, {label_protocol(self.student)}{how}"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Manifest of the student, or of the pseudo-labels."""
        made = Artifact.at(self.student, "student") if self.student else self.labels
        return made.manifest()


@dataclass(frozen=True, eq=False)
class ScoredRun:
    """Breakdown of a run with what is computed from it.

    Attributes:
        run: the labels.
        parts: confusion matrices.
        skipped: frames and sweeps that were left out.
    """

    run: Run
    parts: Breakdown
    skipped: list[Skip]

    @cached_property
    def iou(self) -> Float[np.ndarray, " c1"]:
        """IoU of each class, then their mean."""
        total = self.parts.total
        return np.array([*total.iou(), total.miou()])

    @cached_property
    def intervals(self) -> Float[np.ndarray, "c1 2"]:
        """95 % interval of each over the scenes; nan where there is a single scene."""
        scenes = list(self.parts.scenes().values())
        return iou_intervals(scenes) if len(scenes) > 1 else np.full((len(self.iou), 2), np.nan)

    def worst_classes(self) -> list[int]:
        """The classes of lowest IoU, the worst first."""
        order = np.argsort(np.nan_to_num(self.iou[:-1], nan=np.inf), kind="stable")
        return [int(row) for row in order[:_WORST] if not np.isnan(self.iou[row])]


def score_run(config: Config, index: Artifact, run: Run) -> ScoredRun:
    """Scores the labels of a run; without ground truth its breakdown is empty.

    Raises:
        BadInput: a frame or its truth cannot be used and ``on_bad=fail``.
    """
    skipped = run.labels.skipped()
    return ScoredRun(run, break_down(config, index, run.labels, skipped), skipped)


def gains(ours: ScoredRun, other: ScoredRun) -> Float[np.ndarray, "c1 3"]:
    """Paired gains over the scenes of both runs.

    Raises:
        BadInput: they were scored on other scenes or classes.
    """
    mine = ours.parts.scenes()
    theirs = other.parts.scenes()
    if list(mine) != list(theirs) or ours.parts.names != other.parts.names:
        raise BadInput("against", "was scored on other scenes", "give a run with labels of all")
    return iou_gains(list(mine.values()), list(theirs.values()))


def interval(bounds: Float[np.ndarray, " 2"], form: str = ".1f") -> str:
    """Interval of shares in percent; empty for nan."""
    low, high = 100 * bounds
    return "" if np.isnan(low) else f"{low:{form}} to {high:{form}}"


def percent(value: float) -> str:
    """Share in percent; a dash for nan."""
    return "-" if np.isnan(value) else f"{100 * value:.1f} %"

"""Labels images with a 2D teacher (CLIP) and fuses them to pseudo-labels of LiDAR points.

With a student, it labels the points instead, consolidated over views of a sweep and over time.

usage: python tools/label.py DATA.yaml [LABEL.yaml] [report=labels.png] [key=value ...]
       python tools/label.py DATA.yaml student=FOLDER [report=labels.png] [key=value ...]
"""

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.reports.label_statistics import (
    draw_statistics,
    label_statistics,
    statistics_table,
    statistics_warnings,
    truth_source,
)
from clipsweep.pipeline.reports.views import check_picture, save_figure
from clipsweep.pipeline.run.outside import helper_process
from clipsweep.pipeline.run.progress import planned
from clipsweep.pipeline.stages.consolidate import make_consolidated
from clipsweep.pipeline.stages.guard import label_guard
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.stages.points import make_points
from clipsweep.pipeline.stages.predict import open_student
from clipsweep.pipeline.terminal import say

KEYS = (
    "data",
    "make_demo",
    "demo",
    "labels",
    "teacher",
    "fusion",
    "consolidation",
    "run",
    "store",
    "on_bad",
    "verify",
)


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/label.py: what to make beside the labels."""

    report: Annotated[
        str,
        Field(description="picture (.png) of how good the labels are; a table is printed too"),
    ] = ""
    student: Annotated[
        str,
        Field(description="folder of a student that labels the points; empty: fused pixel labels"),
    ] = ""


def run(config: Config, arguments: Arguments, alone: bool = False) -> Made:
    if arguments.report:
        check_picture(Path(arguments.report))  # before hours of labelling
    student = arguments.student
    if student:
        open_student(config, student)  # before hours of labelling
    with helper_process(alone) as outside:
        if config.make_demo:
            outside(partial(make_demo, config, Path(config.data.root)))
        truth = outside(partial(_truth, config)) if arguments.report else ""
        stages = ["pixels", "poses", "points", *(["points"] if student else [])]
        with planned(stages), label_guard(config, outside=outside) as index:
            teachers = config.consolidation.teacher_weight or not student
            teacher = make_points(config, index, make_pixels(config, index)) if teachers else None
            points = (
                make_consolidated(config, index, student, teacher=teacher) if student else teacher
            )
            assert points is not None
            pixels = make_pixels(config, index) if arguments.report else None
        if pixels:
            made = (index, pixels, points)
            outside(partial(_report, config, *made, truth, Path(arguments.report)))
    return Made(points.path, points.skipped())


def _truth(config: Config) -> str:
    """Where ground truth for the report comes from, before hours of labelling."""
    return truth_source(config, make_index(config))


def _report(
    config: Config, index: Artifact, pixels: Artifact, points: Artifact, truth: str, picture: Path
) -> None:
    """Compares the labels with ground truth: a table, and a picture."""
    space = load_space(config.labels)
    title = f"labels of {pixels.id} and {points.id}"
    title += f", truth from {truth}" if truth else ""
    statistics = label_statistics(config, index, pixels, points)
    say(statistics_table(statistics, space, title))
    for warning in statistics_warnings(statistics, space):
        say(f"warning: {warning}")
    save_figure(draw_statistics(statistics, space, title), picture)
    say(f"drawn in {picture}")


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, partial(run, alone=True), Arguments))

"""Writes a report of a run: one HTML page with scores, mistakes, frames, training, time and disk.

The page is self-contained: it opens by double click and needs no network. Scores stand where the
scenes of data.eval have ground truth, as in tools/evaluate.py.

usage: python tools/report.py DATA.yaml student=FOLDER|pseudo_labels=FOLDER [against=FOLDER]
           [out=report.html] [key=value ...]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.artifacts.store import Artifact, write_whole
from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_scoring, load_space, load_truth
from clipsweep.pipeline.reports.html.report import run_report
from clipsweep.pipeline.reports.html.scored_run import Run
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.labelled import open_labels
from clipsweep.projection.errors import BadInput

KEYS = (
    *("data", "labels", "fusion", "consolidation", "run", "store", "on_bad", "verify"),
    "absent_class",
)


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/report.py: what to report on, and where."""

    student: Annotated[str, Field(description="folder of a student, as printed by pretrain")] = ""
    pseudo_labels: Annotated[
        str, Field(description="folder of pseudo-labels instead, as printed by label")
    ] = ""
    against: Annotated[
        str,
        Field(description="folder of another student or of pseudo-labels to compare with"),
    ] = ""
    consolidate: Annotated[
        bool,
        Field(
            description="average the students' predictions over views and time "
            "(consolidation.*); with consolidation.future_s=0 over the past alone"
        ),
    ] = False
    out: Annotated[str, Field(description="page to write; empty is one in the store")] = ""


def run(config: Config, arguments: Arguments) -> Made:
    load_scoring(config.labels, load_space(config.labels), load_truth(config.labels))  # at once
    if arguments.out:
        _check_page(Path(arguments.out))  # before hours of predicting
    index = make_index(config)
    ours = _open(config, index, arguments, arguments.student, arguments.pseudo_labels)
    other = None
    if arguments.against:
        student = Path(arguments.against).name.startswith("student-")
        folders = (arguments.against, "") if student else ("", arguments.against)
        other = _open(config, index, arguments, *folders)
    page, skipped = run_report(config, index, ours, other)
    out = Path(arguments.out) if arguments.out else _default(config, ours, other)
    write_whole(out, page.html().encode())
    return Made(out, skipped)


def _open(config: Config, index: Artifact, arguments: Arguments, student: str, points: str) -> Run:
    labels = open_labels(config, index, student, points, arguments.consolidate and bool(student))
    return Run(labels, student)


def _default(config: Config, ours: Run, other: Run | None) -> Path:
    """Page in the store, named by the labels that it is of."""
    compared = f"-against-{other.labels.id}" if other else ""
    return Path(config.store) / f"report-{ours.labels.id}{compared}.html"


def _check_page(path: Path) -> None:
    """Validates the file name of the page.

    Raises:
        BadInput: it is a folder or has another suffix.
    """
    if path.suffix.lower() not in (".html", ".htm") or path.is_dir():
        raise BadInput(path, "is no name of a page", "end it in .html")
    path.parent.mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments))

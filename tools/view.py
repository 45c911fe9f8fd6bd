"""Draws a labelled frame: points on its camera images, and in bird's-eye view.

The bird's-eye view shows labels, truth and errors side by side.

usage: python tools/view.py DATA.yaml pseudo_labels=FOLDER|student=FOLDER [frame=ID]
           [out=overlay.png] [key=value ...]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.reports.views import check_picture, draw_key_frame, save_figure
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.labelled import labelled_frames, open_labels
from clipsweep.projection.errors import BadInput

KEYS = ("data", "labels", "fusion", "consolidation", "run", "store", "on_bad")


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/view.py: what to draw, and where."""

    student: Annotated[
        str,
        Field(description="folder of a student to draw, as printed by pretrain"),
    ] = ""
    pseudo_labels: Annotated[
        str,
        Field(description="folder of pseudo-labels to draw instead, as printed by label"),
    ] = ""
    consolidate: Annotated[
        bool,
        Field(
            description="average the student's predictions over views and time "
            "(consolidation.*); with consolidation.future_s=0 over the past alone"
        ),
    ] = False
    frame: Annotated[
        str,
        Field(description="id of the frame to draw; empty is the first of data.eval"),
    ] = ""
    out: Annotated[str, Field(description="picture to write; empty is one in the store")] = ""


def run(config: Config, arguments: Arguments) -> Made:
    if arguments.out:
        check_picture(Path(arguments.out))  # before hours of predicting
    index = make_index(config)
    predicted = open_labels(
        config, index, arguments.student, arguments.pseudo_labels, arguments.consolidate
    )
    labelled = labelled_frames(config, index, predicted)
    wanted = ((frame, label) for frame, label in labelled if arguments.frame in ("", frame.id))
    frame, label = next(wanted, (None, None))
    if frame is None or label is None:
        raise BadInput(
            "frame", f"{arguments.frame!r} is no frame of data.eval", "leave it out for the first"
        )
    kind = "predictions" if arguments.student else "pseudo-labels"
    figure = draw_key_frame(config, frame, label, kind)
    out = Path(
        arguments.out or f"{config.store}/view-{predicted.id}-{frame.id.replace('/', '-')}.png"
    )
    save_figure(figure, out)
    return Made(out, predicted.skipped())


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments))

"""Draws a labelled frame, or records a labelled drive for the Rerun viewer.

The picture shows points on the camera images, and labels, truth and errors from above. The
recording holds all key frames of data.eval on a timeline: points with labels, truth, errors and
scores, cameras at their poses with points and pixel labels, the path. Open it with: rerun FILE.

usage: python tools/view.py DATA.yaml pseudo_labels=FOLDER|student=FOLDER [frame=ID]
           [out=overlay.png] [key=value ...]
       python tools/view.py DATA.yaml pseudo_labels=FOLDER|student=FOLDER format=rerun
           [out=drive.rrd] [key=value ...]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.reports.recording import check_recording, record_drive
from clipsweep.pipeline.reports.views import check_picture, draw_key_frame, save_figure
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.labelled import labelled_frames, open_labels, pixels_behind
from clipsweep.pipeline.terminal import say
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
    format: Annotated[
        Literal["picture", "rerun"],
        Field(description="a picture of one frame, or a recording of all for the Rerun viewer"),
    ] = "picture"
    frame: Annotated[
        str,
        Field(description="id of the frame to draw; empty is the first of data.eval"),
    ] = ""
    out: Annotated[str, Field(description="file to write; empty is one in the store")] = ""


def run(config: Config, arguments: Arguments) -> Made:
    recorded = arguments.format == "rerun"
    if recorded and arguments.frame:
        raise BadInput("frame", "is given with format=rerun, which records all", "leave it out")
    if arguments.out:  # before hours of predicting
        (check_recording if recorded else check_picture)(Path(arguments.out))
    index = make_index(config)
    labels = open_labels(
        config, index, arguments.student, arguments.pseudo_labels, arguments.consolidate
    )
    if recorded:
        made = arguments.student or arguments.pseudo_labels
        out = Path(arguments.out or f"{config.store}/view-{labels.id}.rrd")
        pixels = _pixels(config, index, made)
        record_drive(config, labels, labelled_frames(config, index, labels), pixels, out)
        return Made(out, labels.skipped())
    return Made(_draw(config, index, labels, arguments), labels.skipped())


def _pixels(config: Config, index: Artifact, made: str) -> Artifact | None:
    """Pixel labels of the frames, if they are in the store; else says that they are left out."""
    try:
        return pixels_behind(config, index, made)
    except BadInput as error:
        say(f"recorded without pixel labels: {error}")
        return None


def _draw(config: Config, index: Artifact, labels: Artifact, arguments: Arguments) -> Path:
    """Draws a frame; returns the picture's file."""
    found = labelled_frames(config, index, labels)
    wanted = ((frame, label) for frame, label in found if arguments.frame in ("", frame.id))
    frame, label = next(wanted, (None, None))
    if frame is None or label is None:
        raise BadInput(
            "frame", f"{arguments.frame!r} is no frame of data.eval", "leave it out for the first"
        )
    kind = "predictions" if arguments.student else "pseudo-labels"
    name = f"view-{labels.id}-{frame.id.replace('/', '-')}.png"
    out = Path(arguments.out or f"{config.store}/{name}")
    save_figure(draw_key_frame(config, frame, label, kind), out)
    return out


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments))

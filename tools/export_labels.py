"""Exports labels of data.eval: a data set's official format, or coloured LAS, PLY, PCD files.

They are a student's predictions, or pseudo-labels.

Frames of data.eval alone are written: data.eval=test for a submission, data.eval=train for
pseudo-labels to train on.

usage: python tools/export_labels.py DATA.yaml student=FOLDER [format=NAME] [out=FOLDER]
           [key=value ...]
       python tools/export_labels.py DATA.yaml pseudo_labels=FOLDER [format=NAME] [out=FOLDER]
           [key=value ...]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.artifacts.read import key_cloud, read_points
from clipsweep.pipeline.artifacts.store import check_absent
from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.datasets.export import Format, pseudo_labels, submission
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.reports.clouds import CLOUDS, export_frames, export_maps
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.labelled import labelled_frames, open_labels
from clipsweep.pipeline.terminal import say
from clipsweep.projection.errors import BadInput

KEYS = ("data", "labels", "consolidation", "run", "store", "on_bad", "verify")


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/export_labels.py: what to export, and how."""

    student: Annotated[
        str,
        Field(description="folder of a student to export, as printed by pretrain"),
    ] = ""
    pseudo_labels: Annotated[
        str,
        Field(description="folder of pseudo-labels to export instead, as printed by label"),
    ] = ""
    consolidate: Annotated[
        bool,
        Field(
            description="average the student's predictions over views and time "
            "(consolidation.*); with consolidation.future_s=0 over the past alone"
        ),
    ] = False
    format: Annotated[
        str,
        Field(
            description="data.kind whose official format to write; empty is the data's own. las, "
            "ply, pcd: point clouds with colours, class ids and names"
        ),
    ] = ""
    merge: Annotated[
        bool,
        Field(description="las, ply, pcd: one map of each scene, in world coordinates"),
    ] = False
    voxel_m: Annotated[
        float,
        Field(
            ge=0.001,
            le=100,
            description="merge=true: a map keeps one point of each voxel of this size [m]",
        ),
    ] = 0.1
    out: Annotated[
        str,
        Field(description="new folder to write, outside of data.root; empty is one in the store"),
    ] = ""


def run(config: Config, arguments: Arguments) -> Made:
    if arguments.out:
        check_absent(Path(arguments.out))  # before hours of predicting
        _check_outside(Path(arguments.out), Path(config.data.root))
    chosen = None if arguments.format in CLOUDS else _format(config, arguments)
    if chosen is not None and arguments.merge:
        problem = f"is true with the format of {arguments.format or config.data.kind}"
        raise BadInput("merge", problem, f"give format={', '.join(CLOUDS)}")
    if arguments.voxel_m != Arguments.voxel_m and not arguments.merge:
        raise BadInput("voxel_m", "is given without merge=true, which thins by it", "leave it out")
    index = make_index(config)
    space = load_space(config.labels)
    split = config.data.eval[0] if len(config.data.eval) == 1 else "eval"
    predicted = open_labels(
        config, index, arguments.student, arguments.pseudo_labels, arguments.consolidate
    )
    kind = f"-{arguments.format}{'-map' * arguments.merge}" if chosen is None else ""
    out = Path(arguments.out or f"{config.store}/export-{split}-{predicted.id}{kind}")
    if chosen is None:
        labelled = (
            (frame, cloud, label[cloud.source])
            for frame, label in labelled_frames(config, index, predicted)
            for cloud in [key_cloud(frame, config)]
        )
        if arguments.merge:
            export_maps(out, arguments.format, space, labelled, arguments.voxel_m)
        else:
            export_frames(out, arguments.format, space, labelled)
    elif arguments.pseudo_labels:
        labels = (
            (frame, read_points(predicted, frame))
            for frame, _ in labelled_frames(config, index, predicted)
        )
        pseudo_labels(chosen, out, split, space, labels)
    else:
        submission(chosen, out, split, space, labelled_frames(config, index, predicted))
        absent = index.manifest()["counts"].get("absent_eval", 0)
        if absent:
            say(
                f"{out}: {absent} scene(s) of the split are not there; an evaluation server will "
                "want them all"
            )
    return Made(out, predicted.skipped())


def _format(config: Config, arguments: Arguments) -> Format:
    formats = {kind: reader.export for kind, reader in DATASETS.items() if reader.export}
    if arguments.format in formats:
        return formats[arguments.format]
    own = formats.get(config.data.kind)
    if arguments.format or own is None:
        problem = (
            "is no official format" if arguments.format else "is empty, and the data have none"
        )
        known = [*formats, *CLOUDS]
        raise BadInput(f"format={arguments.format}", problem, f"give {' or '.join(known)}")
    return own


def _check_outside(out: Path, root: Path) -> None:
    """Refuses a folder in the data root, where exported labels could pass for human ones."""
    if out.resolve().is_relative_to(root.resolve()):
        raise BadInput("out", f"{out} lies in data.root", "give a folder outside of it")


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments))

"""Fine-tunes a student on a share of the human labels.

The student is a pre-trained one, or one with random weights; ``protocol`` gives the share.

usage: python tools/finetune.py DATA.yaml [FINETUNE.yaml] student=FOLDER|none
           [protocol=scene@1%] [key=value ...]
"""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.cli import Made, main, report_bad_steps
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.outside import helper_process
from clipsweep.pipeline.stages.finetune import make_finetuned
from clipsweep.pipeline.stages.guard import label_guard

KEYS = (
    *("data", "labels", "model", "objectives.segmentation", "train", "finetune", "run"),
    *("consolidation", "fusion.align", "fusion.window_s", "fusion.cell_m"),
    *("protocol", "store", "seed", "on_bad", "verify"),
)


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/finetune.py: student to start from, pseudo-labels to learn beside."""

    student: Annotated[
        str,
        Field(description="folder of a pre-trained student, or none for random weights"),
    ] = ""
    pseudo_labels: Annotated[
        str,
        Field(
            description="folder of pseudo-labels of the frames without labels; empty: the student "
            "labels them itself, as finetune.unlabelled says"
        ),
    ] = ""


def run(config: Config, arguments: Arguments, alone: bool = False) -> Made:
    with helper_process(alone) as outside:
        guard = partial(label_guard, outside=outside)
        student = make_finetuned(config, arguments.student, arguments.pseudo_labels, guard)
    report_bad_steps(student)
    return Made(student.path, student.skipped())


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, partial(run, alone=True), Arguments))

"""Pre-trains a student on pseudo-labels, without human labels.

Makes first whatever that needs: index, pixel labels, point labels.

usage: python tools/pretrain.py DATA.yaml [PRETRAIN.yaml] [key=value ...]

run.executor=ray run.workers=N trains on N workers of Ray Train; torchrun --nproc-per-node=N
tools/pretrain.py ... needs no Ray.
"""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.cli import Made, argument_names, main, report_bad_steps, without
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.run.outside import helper_process
from clipsweep.pipeline.run.signals import Stopped, defer_signals
from clipsweep.pipeline.stages.guard import label_guard
from clipsweep.pipeline.stages.pretrain import make_pretrained
from clipsweep.pipeline.terminal import say

KEYS = (
    *(
        "data",
        "make_demo",
        "demo",
        "labels",
        "teacher",
        "fusion",
        "consolidation",
        "model",
        "objectives",
        "train",
        "run",
    ),
    *("store", "seed", "rounds", "on_bad", "verify", "evaluate"),
)


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/pretrain.py: student whose training is resumed."""

    resume: Annotated[
        str,
        Field(
            description="folder of a student to continue from; empty continues this "
            "configuration's own unfinished training"
        ),
    ] = ""


def run(config: Config, arguments: Arguments, alone: bool = False) -> Made:
    with helper_process(alone) as outside:
        if config.make_demo:
            outside(partial(make_demo, config, Path(config.data.root)))
        guard = partial(label_guard, outside=outside)
        student = make_pretrained(config, arguments.resume, guard)
        report_bad_steps(student)
        if config.evaluate and os.environ.get("RANK", "0") == "0":
            outside(partial(_show, student.path))
    return Made(student.path, student.skipped())


def _show(student: Path) -> None:
    """Evaluates and reports in processes of their own: training never has truth in reach."""
    settings = without(argument_names(Arguments), sys.argv[1:])
    say(f"{student} is trained; its scores and a report:")
    for tool in ("evaluate", "report"):
        script = str(Path(__file__).with_name(f"{tool}.py"))
        command = [sys.executable, script, *settings, f"student={student}"]
        with defer_signals() as received, subprocess.Popen(command, stdout=sys.stderr) as child:
            while child.poll() is None and not received:
                time.sleep(0.1)
            if received:
                child.terminate()
                raise Stopped(received[0], f"{student} is trained, tools/{tool}.py was stopped")
        if child.returncode:
            say(f"{student} is trained; tools/{tool}.py failed, see above")
            raise SystemExit(child.returncode)


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, partial(run, alone=True), Arguments))

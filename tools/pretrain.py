"""Trains a student without human labels, making first whatever that needs: index, pixel labels, point labels.

usage: python tools/pretrain.py DATA.yaml PRETRAIN.yaml [key=value ...]

run.executor=ray run.workers=N trains on N workers of Ray Train; torchrun --nproc-per-node=N
tools/pretrain.py ... needs no Ray.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from clipsweep.pipeline.command import Made, main, say, say_bad_steps
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.signals import Stopped, noted
from clipsweep.pipeline.training import make_pretrained

KEYS = (
    *("data", "make_demo", "demo", "labels", "teacher", "fusion", "model", "objectives", "train", "run"),
    *("store", "seed", "on_bad", "verify", "evaluate", "resume"),
)


def run(config: Config) -> Made:
    if config.make_demo:
        make_demo(config, Path(config.data.root))
    student = make_pretrained(config)
    say_bad_steps(student)
    if config.evaluate and os.environ.get("RANK", "0") == "0":
        _show(student.path)
    return Made(student.path, student.skipped())


def _show(student: Path) -> None:
    """Scores and draws in processes of their own: training must never have truth in reach."""
    arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
    say(f"{student} is trained; its scores and a picture of the first frame that they are of:")
    for tool in ("evaluate", "view"):
        command = [sys.executable, str(Path(__file__).with_name(f"{tool}.py")), *arguments, f"student={student}"]
        with noted() as heard, subprocess.Popen(command, stdout=sys.stderr) as child:
            while child.poll() is None and not heard:
                time.sleep(0.1)
            if heard:
                child.terminate()
                raise Stopped(heard[0], f"{student} is trained, tools/{tool}.py was stopped")
        if child.returncode:
            say(f"{student} is trained; tools/{tool}.py failed, see above")
            raise SystemExit(child.returncode)


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run))

"""Trains a student without human labels, making first whatever that needs: index, pixel labels, point labels.

usage: python tools/pretrain.py DATA.yaml PRETRAIN.yaml [key=value ...]

run.workers=N trains on N workers of Ray Train; torchrun --nproc-per-node=N tools/pretrain.py ... needs no Ray.
"""

import os
import subprocess
import sys
from pathlib import Path

from pipeline.command import Made, main
from pipeline.config import Config
from pipeline.training import make_pretrained

KEYS = (
    *("data", "labels", "teacher", "fusion", "model", "objectives", "train", "run"),
    *("store", "seed", "on_bad", "verify", "evaluate", "resume"),
)


def run(config: Config) -> Made:
    student = make_pretrained(config)
    if (
        config.evaluate and os.environ.get("RANK", "0") == "0"
    ):  # a process of its own: training must never have truth in reach
        tool = Path(__file__).with_name("evaluate.py")
        arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
        subprocess.run([sys.executable, tool, *arguments, f"student={student.path}"], check=True, stdout=sys.stderr)
    return Made(student.path, student.skipped())


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run))

"""Writes a synthetic data set in nuScenes or SemanticKITTI format.

A small street world with images, sweeps, poses and exact point labels.

usage: python tools/demo.py [configs/demo.yaml|configs/demo_kitti.yaml] [out=FOLDER] [key=value ...]

Without a file it takes configs/demo.yaml; without out= it writes to data.root, where the other
tools look for it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.yaml_files import CONFIGS

KEYS = ("demo", "data.kind", "data.root")


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/demo.py: where to write."""

    out: Annotated[str, Field(description="folder to write; empty is data.root")] = ""


def run(config: Config, arguments: Arguments) -> Made:
    root = Path(arguments.out or config.data.root)
    make_demo(config, root)
    return Made(root)


def with_recipe(arguments: Sequence[str]) -> list[str]:
    named = any("=" not in argument and not argument.startswith("-") for argument in arguments)
    return [*([] if named else [str(CONFIGS / "demo.yaml")]), *arguments]


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments, with_recipe(sys.argv[1:])))

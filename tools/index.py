"""Indexes a data set: reads its tables once into an index of key frames.

usage: python tools/index.py DATA.yaml [key=value ...]
"""

import sys
from pathlib import Path

from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.stages.index import make_index

KEYS = ("data", "make_demo", "demo", "store", "on_bad", "verify")


def run(config: Config) -> Made:
    if config.make_demo:
        make_demo(config, Path(config.data.root))
    index = make_index(config)
    return Made(index.path, index.skipped())


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run))

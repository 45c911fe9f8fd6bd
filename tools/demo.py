"""Writes the embedded world as a data root of nuScenes or SemanticKITTI: images, sweeps, poses, exact point labels.

usage: python tools/demo.py [configs/demo.yaml|configs/demo_kitti.yaml] [out=FOLDER] [key=value ...]
"""

import sys
from pathlib import Path

from pipeline.command import Made, main
from pipeline.config import Config
from pipeline.stages import make_demo

KEYS = ("demo", "data.kind", "out")


def run(config: Config) -> Made:
    root = Path(config.out or "demo-data")
    make_demo(config, root)
    return Made(root)


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run))

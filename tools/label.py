"""Labels the images with the teacher and fuses the labels on the points of the key sweeps.

usage: python tools/label.py DATA.yaml LABEL.yaml [key=value ...]
"""

import sys

from pipeline.command import Made, main
from pipeline.config import Config
from pipeline.stages import make_index, make_pixels, make_points

KEYS = ("data", "labels", "teacher", "fusion", "run", "store", "on_bad", "verify")


def run(config: Config) -> Made:
    index = make_index(config)
    points = make_points(config, index, make_pixels(config, index))
    return Made(points.path, points.skipped())


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run))

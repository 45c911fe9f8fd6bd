"""Writes predictions of a student, or fused point labels, in an official format.

usage: python tools/export_labels.py DATA.yaml student=FOLDER [format=NAME] [out=FOLDER] [key=value ...]
       python tools/export_labels.py DATA.yaml points=FOLDER [format=NAME] [out=FOLDER] [key=value ...]
"""

import sys
from pathlib import Path

from clipsweep.pipeline.command import Made, main, say
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.export import FORMATS, pseudo_labels, submission
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.loaders import read_points
from clipsweep.pipeline.scoring import labelled_frames, make_predictions, open_points
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.store import check_absent

KEYS = ("data", "labels", "run", "store", "on_bad", "verify", "student", "points", "format", "out")


def run(config: Config) -> Made:
    if config.out:
        check_absent(Path(config.out))  # before hours of predicting
    index, space = make_index(config), load_space(config.labels)
    split = config.data.eval[0] if len(config.data.eval) == 1 else "eval"
    if config.points:
        said = open_points(config, index)
        labels = ((frame, read_points(said, frame)) for frame, _ in labelled_frames(config, index, said))
        out = Path(config.out or f"{config.store}/export-{said.id}")
        pseudo_labels(FORMATS[config.format], out, split, space, labels)
    else:
        said = make_predictions(config, index)
        out = Path(config.out or f"{config.store}/export-{said.id}")
        submission(FORMATS[config.format], out, split, space, labelled_frames(config, index, said))
        absent = index.manifest()["counts"].get("absent_eval", 0)
        if absent:
            say(f"{out}: {absent} scene(s) of the split are not there; an evaluation server will want them all")
    return Made(out, said.skipped())


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run))

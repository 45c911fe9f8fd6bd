"""Draws a frame: labelled points on its camera images, and from above beside truth and errors.

usage: python tools/view.py DATA.yaml points=FOLDER|student=FOLDER [frame=ID] out=overlay.png [key=value ...]
"""

import sys
from pathlib import Path

from clipsweep.pipeline.command import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.loaders import key_cloud, read_truth
from clipsweep.pipeline.scoring import labelled_frames, make_predictions, open_points
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.views import check_picture, draw_frame, save_figure
from clipsweep.projection.errors import BadInput

KEYS = ("data", "labels", "fusion", "run", "store", "on_bad", "student", "points", "frame", "out")


def run(config: Config) -> Made:
    if config.out:
        check_picture(Path(config.out))  # before hours of predicting
    index, space = make_index(config), load_space(config.labels)
    said = open_points(config, index) if config.points else make_predictions(config, index)
    frames = ((f, label) for f, label in labelled_frames(config, index, said) if config.frame in ("", f.id))
    frame, label = next(frames, (None, None))
    if frame is None or label is None:
        raise BadInput("frame", f"{config.frame!r} is no frame of data.eval", "leave it out for the first")
    cloud = key_cloud(frame, config, config.data.ego_box_m)
    others = config.labels.truth or config.labels.names  # then the truth's classes are not these
    truth = None if others else read_truth(frame, space, config)
    title = f"{frame.scene}, frame {frame.id}, {said.id}"
    rows = cloud.source
    figure = draw_frame(frame, cloud, label[rows], None if truth is None else truth[rows], space, config.fusion, title)
    out = Path(config.out or f"{config.store}/view-{said.id}-{frame.id.replace('/', '-')}.png")
    save_figure(figure, out)
    return Made(out, said.skipped())


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run))

"""Looks at twenty frames of a data set, and says what looks wrong with it.

Calibration, axes, poses, clocks, heights, intensities, the car's own returns. One line on stderr
for each finding, and a picture of points on images.

usage: python tools/doctor.py DATA.yaml [out=doctor.png] [key=value ...]
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.doctor import CHECKS, draw, findings
from clipsweep.pipeline.doctor.survey import survey
from clipsweep.pipeline.reports.views import check_picture, save_figure
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of

KEYS = ("data", "store", "on_bad", "verify")
_log = logging.getLogger("clipsweep.tools.doctor")


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/doctor.py: where to draw."""

    out: Annotated[str, Field(description="picture to write; empty is one in the store")] = ""


def run(config: Config, arguments: Arguments) -> Made:
    if arguments.out:
        check_picture(Path(arguments.out))
    index = make_index(config)
    frames = [f for scene in scenes_of(index) for f in scene_frames(index, config, scene)]
    looked = survey(frames, config.data)
    found = findings(looked)
    for line in found:
        _log.warning(line)
    _log.info(f"{len(found)} finding(s) by {len(CHECKS)} checks of {len(looked.looks)} frames")
    out = Path(arguments.out or f"{config.store}/doctor-{index.id}.png")
    save_figure(draw(looked.looks[len(looked.looks) // 2]), out)
    return Made(out, index.skipped())


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments))

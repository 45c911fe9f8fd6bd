"""Imports a ROS 1 or ROS 2 bag or an MCAP file into the folder format, without ROS.

The topics file names the car's frame, the topics of the LiDAR and the cameras, and where poses come
from; configs/data/folder.md has an example. Extrinsics come from /tf_static. Run it again to go on
where it was stopped.

usage: python tools/import_bag.py bag=PATH topics=topics.yaml out=FOLDER
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from clipsweep.pipeline.bags.importer import import_bag
from clipsweep.pipeline.bags.topics import read_topics
from clipsweep.pipeline.cli import Made, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.terminal import say
from clipsweep.projection.errors import BadInput

KEYS: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """Arguments of tools/import_bag.py: the bag, what to import, and where to."""

    bag: Annotated[str, Field(description="ROS 1 bag, folder of a ROS 2 bag, or MCAP file")] = ""
    topics: Annotated[str, Field(description="YAML file that names topics and frames")] = ""
    out: Annotated[str, Field(description="folder of the scene to write")] = ""


def run(_: Config, arguments: Arguments) -> Made:
    for name in ("bag", "topics", "out"):
        if not getattr(arguments, name):
            raise BadInput(name, "is not set", f"give {name}=PATH")
    out = Path(arguments.out)
    done = import_bag(Path(arguments.bag), read_topics(Path(arguments.topics)), out)
    say(", ".join(f"{count} {what}" for what, count in done.counts.items()))
    for reason, count in done.left_out.items():
        say(f"left out {count} {reason}")
    return Made(out)


if __name__ == "__main__":
    sys.exit(main(__doc__, KEYS, run, Arguments))

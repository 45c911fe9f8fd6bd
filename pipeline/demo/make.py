"""Writes the synthetic demo data set once, in the layout of the configured data set."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict
from pathlib import Path

from clipsweep.pipeline.artifacts.store import write_whole
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.demo.kitti import write_kitti_demo
from clipsweep.pipeline.demo.write import split_names, write_demo
from clipsweep.pipeline.stages.index import DEMO_MARK
from clipsweep.projection.errors import BadInput

_log = logging.getLogger(__name__)

_WRITERS = {"nuscenes": write_demo, "semantickitti": write_kitti_demo}
_POLL_S = 0.5


def make_demo(config: Config, root: Path) -> None:
    """Writes the demo data set in the layout of ``data.kind`` to a data root that lacks it.

    Of several training workers the first writes, the others wait for it.

    Raises:
        BadInput: something else is there, or a setting is out of its bounds.
    """
    if config.make_demo and config.data.kind == "nuscenes":
        _check_version(config)
    mark = root / DEMO_MARK
    wanted = {"kind": config.data.kind, **asdict(config.demo)}
    while os.environ.get("RANK", "0") != "0" and not mark.is_file():
        time.sleep(_POLL_S)
    if mark.is_file() and json.loads(mark.read_text()) == wanted:
        return
    if config.data.kind not in _WRITERS:
        cure = f"data.kind is one of {', '.join(_WRITERS)} with make_demo"
        raise BadInput("data.kind", f"is {config.data.kind}, in which no demo is written", cure)
    if root.exists():
        raise BadInput(
            root,
            "holds something else than this demo world",
            "delete it, or give another data.root",
        )
    _log.info(f"writing the demo world to {root}")
    try:
        _WRITERS[config.data.kind](config.demo, root)
    except ValueError as error:
        raise BadInput("demo", str(error)) from None
    write_whole(mark, json.dumps(wanted).encode())


def _check_version(config: Config) -> None:
    """Refuses a demo world whose tables the run that asked for it would not find."""
    version, *_ = split_names(config.demo.train_scenes, config.demo.val_scenes)
    asked = config.data.own.version
    if asked != version:
        problem = f"is {asked}, but a demo world of this size is {version}"
        cure = f"set data.nuscenes.version={version}"
        if version == "v1.0-mini":
            cure += " data.train=mini_train data.eval=mini_val"
        raise BadInput("data.nuscenes.version", problem, cure)

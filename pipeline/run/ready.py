"""Preflight checks before a run: packages, GPUs, files, memory."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import torch

from clipsweep.distill.teacher.protocol import ReadsImages
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.run.scenes import INSTALL_RAY
from clipsweep.projection.errors import BadInput

_FREE_MIN_BYTES = 200 << 20
_COPIES = 4  # of a batch of images that a network needs at the very least


def check_ready(config: Config) -> None:
    """Preflight check: refuses settings that this machine cannot run.

    Raises:
        BadInput: Ray is wanted and not installed, several workers are wanted without it, a GPU is
            and there is none, the label space cannot be used, the store cannot be written or its
            disk is full, or a batch of the teacher's images does not fit the machine's memory.
    """
    _check_workers(config)
    _check_gpus(config)
    load_space(config.labels)
    _check_store(Path(config.store))
    _check_images(config)


def _check_workers(config: Config) -> None:
    run = config.run
    if run.executor == "ray":
        if importlib.util.find_spec("ray") is None:
            raise BadInput("run.executor", "is ray, which is not installed", INSTALL_RAY)
    elif run.workers > 1 and "WORLD_SIZE" not in os.environ:
        cure = "give run.executor=ray, or start the training with torchrun"
        raise BadInput("run.workers", f"is {run.workers} with run.executor=local", cure)


def _check_gpus(config: Config) -> None:
    """Checks that there are as many GPUs as asked for; a cluster with an address may have them."""
    here = torch.cuda.device_count()
    if config.run.gpus > here and not config.run.address:
        problem = f"is {config.run.gpus:g}, this machine has {here} that CUDA finds"
        raise BadInput("run.gpus", problem, "give run.gpus=0, or run.address of a cluster")


def _check_store(store: Path) -> None:
    there = next(folder for folder in (store, *store.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(store, "cannot be written", "give a folder of your own as store=")
    free = shutil.disk_usage(there).free
    if free < _FREE_MIN_BYTES:
        raise BadInput(
            store, f"its disk has {free >> 20} MiB left", "make room, or give another store="
        )


def _check_images(config: Config) -> None:
    own = config.teacher.own
    if not isinstance(own, ReadsImages):
        return
    height, width = own.size_hw
    wanted = _COPIES * 4 * 3 * own.batch * height * width
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > memory:
        problem = (
            f"{own.batch} images of {height} x {width} need {wanted / 2**30:.0f} GiB or"
            f" more, this machine has {memory / 2**30:.0f}"
        )
        group = f"teacher.{config.teacher.kind}"
        raise BadInput(f"{group}.size_hw", problem, f"make it or {group}.batch smaller")

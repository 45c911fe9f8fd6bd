"""Training on several workers: whoever starts them, torchrun or Ray Train, each runs the same function on its part."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from distill.train import NotFinite
from pipeline.config import Config
from pipeline.guard import LabelLeak
from pipeline.work import Incomplete
from projection.errors import BadInput

T = TypeVar("T")
_PREPARING = timedelta(days=30)
"""Labelling a data set takes as long as it takes; no limit on the training's own messages should be so long."""


@contextmanager
def joined(prepare: Callable[[], T]) -> Iterator[T]:
    """Within, this process is one of those that the torch.distributed environment names, if it names several.

    Args:
        prepare: makes what the training needs; called by the first process while the others wait, then by these, who
            find it made.

    Yields:
        What ``prepare`` returns.
    """
    if distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield prepare()
        return
    store, rank, world = next(rendezvous("env://"))
    if rank:
        store.wait(["prepared"], _PREPARING)
    prepared = prepare()
    store.set("prepared", "")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world)
    try:
        yield prepared
        distributed.barrier()  # nobody leaves before the first has written the result
    finally:
        distributed.destroy_process_group()


def wants_ray(config: Config) -> bool:
    """Whether ``run.workers`` asks for several workers that nobody has started yet."""
    return config.run.workers > 1 and not distributed.is_initialized() and "WORLD_SIZE" not in os.environ


def on_ray(learn: Callable[[Config], object], config: Config) -> None:
    """Runs a training on Ray Train, on ``run.workers`` workers but no more than a batch has frames.

    When a worker is lost, all are started anew up to ``run.attempts`` times and go on from the last checkpoint.

    Args:
        learn: the training; its result is an artifact in the store, which all workers see.
        config: of the training.

    Raises:
        BadInput: from a worker, or Ray Train is not installed.
        NotFinite: from a worker.
        Incomplete: the workers were lost too often.
    """
    try:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.exceptions import TrainingFailedError
    except ImportError as error:
        raise BadInput(
            "run.workers", f"{config.run.workers} need Ray Train ({error})", 'pip install -e ".[ray]"'
        ) from None
    from pipeline.cluster import cluster

    workers = min(config.run.workers, config.train.batch_size)
    store = Path(config.store).resolve()
    store.mkdir(parents=True, exist_ok=True)
    with (
        redirect_stdout(sys.stderr),  # Ray prints there that a worker died
        cluster(config.run),
        tempfile.TemporaryDirectory(prefix=".ray-train-", dir=store) as folder,
    ):
        trainer = TorchTrainer(
            partial(_from_here, learn, config, os.getcwd()),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=config.run.gpus > 0),
            run_config=RunConfig(storage_path=folder, failure_config=FailureConfig(max_failures=config.run.attempts)),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from None


def _from_here(learn: Callable[[Config], object], config: Config, folder: str) -> None:
    os.chdir(folder)  # Ray Train starts its workers elsewhere; configurations name files from here
    learn(config)


def _cause(error: Exception) -> Exception:
    """What a worker said, if it said anything worth hearing; the others only lost touch with it."""
    failures = getattr(error, "worker_failures", {}).values()
    for failure in failures:
        for found in (failure, getattr(failure, "cause", None), failure.__cause__):
            if isinstance(found, BadInput | NotFinite | LabelLeak):
                return found
    said = str(next(iter(failures), error)).strip().splitlines()
    return Incomplete(f"training was given up ({said[0] if said else error!r}); run the same command again to go on")

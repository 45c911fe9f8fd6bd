"""Distributed data-parallel training with torchrun or Ray Train.

Each worker that torchrun or Ray Train starts runs the same function on its part.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import TypeVar

import torch
from torch import distributed
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from clipsweep.distill.training.distributed import rank
from clipsweep.distill.training.loop import NotFinite
from clipsweep.pipeline.artifacts.store import write_whole
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.scenes import Incomplete, check_shared, needs_ray
from clipsweep.pipeline.stages.guard import LabelLeak
from clipsweep.projection.errors import BadInput

T = TypeVar("T")
_POLL_S = 0.5


_groups = count(1)


@cache
def _rendezvous() -> tuple[Store, int, int]:
    """Store that all training processes reach, this one's rank and their number; met once."""
    store, rank, world = next(rendezvous("env://"))
    return store, rank, world


@contextmanager
def process_group(prepare: Callable[[], T]) -> Iterator[T]:
    """Process group of torch.distributed, if the environment names several processes.

    Args:
        prepare: makes what the training needs; called by the first process while the others wait,
            then by these, who find it made.

    Yields:
        What ``prepare`` returns.
    """
    if distributed.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield prepare()
        return
    common, rank, world = _rendezvous()
    store = PrefixStore(f"group {next(_groups)}", common)  # one a round of training
    while rank and not store.check(["prepared"]):  # a wait inside the store would receive no signal
        time.sleep(_POLL_S)
    prepared = prepare()
    store.set("prepared", "")
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    distributed.init_process_group(
        "nccl" if cuda else "gloo", store=store, rank=rank, world_size=world
    )
    try:
        yield prepared
        distributed.barrier()  # no process leaves before the first has written the result
    finally:
        distributed.destroy_process_group()


def wants_ray(config: Config) -> bool:
    """Whether a run asks for several workers on Ray that have not been started yet."""
    wanted = config.run.executor == "ray" and config.run.workers > 1
    return wanted and not distributed.is_initialized() and "WORLD_SIZE" not in os.environ


def train_on_ray(learn: Callable[[Config], object], config: Config) -> None:
    """Data-parallel training on Ray Train with ``run.workers`` workers.

    There are no more workers than a batch has frames. When a worker is lost, all are started anew
    up to ``run.attempts`` times and go on from the last checkpoint. What another attempt would not
    mend ends the training at once.

    Args:
        learn: the training; its result is an artifact in the store, which all workers see.
        config: of the training.

    Raises:
        BadInput: from a worker; Ray is not installed, the cluster has no room, or its nodes share
            no store.
        NotFinite: from a worker.
        LabelLeak: from a worker.
        Incomplete: the workers were lost too often.
    """
    with needs_ray("run.workers"):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
        from ray.train.v2.api.config import FailureConfig
        from ray.train.v2.api.exceptions import TrainingFailedError

        from clipsweep.pipeline.run.ray_scenes import check_room, ray_cluster
    if config.run.address:
        check_shared(config)
    workers = min(config.run.workers, config.train.batch_size)
    attempts = config.run.attempts
    store = Path(config.store).resolve()
    store.mkdir(parents=True, exist_ok=True)
    with (
        redirect_stdout(sys.stderr),  # Ray prints there that a worker died
        ray_cluster(config.run),
        tempfile.TemporaryDirectory(prefix=".ray-train-", dir=store) as folder,
    ):
        check_room(workers, config.run.gpus > 0)
        outcome = Path(folder) / "outcome.json"
        failures = FailureConfig(max_failures=attempts, controller_failure_limit=attempts)
        trainer = TorchTrainer(
            partial(_run_worker, learn, config, os.getcwd(), outcome),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=config.run.gpus > 0),
            run_config=RunConfig(storage_path=folder, failure_config=failures),
        )
        lost: Exception | None = None
        try:
            trainer.fit()
        except TrainingFailedError as error:
            lost = error
        if not outcome.exists():
            raise _gave_up(lost) if lost else _not_shared(store)
        _raise_final(outcome)


_FINAL: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (BadInput, NotFinite, LabelLeak)
}
"""Errors of a worker that no other attempt would mend."""


def _run_worker(
    learn: Callable[[Config], object], config: Config, folder: str, outcome: Path
) -> None:
    """Trains as one worker of Ray Train, and records in the store how a training ended for good.

    A worker that fails must raise, or the others would wait for it; Ray Train then starts all of
    them once more.
    """
    if outcome.exists():
        return
    os.chdir(folder)  # Ray Train starts its workers elsewhere; configurations name files from here
    try:
        learn(config)
    except tuple(_FINAL.values()) as error:
        write_whole(outcome, json.dumps([type(error).__name__, error.__reduce__()[1]]).encode())
        raise
    if rank() == 0:
        write_whole(outcome, b"[]")


def _raise_final(outcome: Path) -> None:
    """Raises the recorded final error of a training worker, if there is one."""
    failure = json.loads(outcome.read_text())
    if failure:
        kind, arguments = failure
        raise _FINAL[kind](*arguments)


def _not_shared(store: Path) -> BadInput:
    return BadInput(
        "store",
        f"the workers ended well, but left nothing in {store}",
        "give a folder that nodes share",
    )


def _gave_up(error: Exception) -> Incomplete:
    """Finds the error of the first training worker that failed."""
    failures = getattr(error, "worker_failures", {}).values()
    lines = str(next(iter(failures), error)).strip().splitlines()
    return Incomplete(
        f"training was given up ({lines[0] if lines else error!r}); run the same command again to "
        "go on"
    )

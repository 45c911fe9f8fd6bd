"""The unit of work: a scene, the worker that does it, the shard that comes of it, and how all that is carried out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from clipsweep.pipeline.datasets.rows import Skip
from clipsweep.pipeline.store import Artifact


@dataclass(frozen=True)
class RunConfig:
    """How the work is carried out; never changes what comes out.

    Attributes:
        executor: local does all in this process; ray spreads scenes over workers
        address: HOST:PORT of a Ray cluster to join; empty starts one of its own on this machine and ends it after (ray)
        workers: workers that do scenes at the same time, and that train together (ray)
        gpus: GPUs of each labelling or predicting worker, fractions allowed (ray); more than 0 trains on one each
        attempts: times that a scene, or a training, may lose its worker before it is given up (ray)
        failures: scenes that may be given up before the whole run stops (ray)
        deadline_s: time after which a scene is also given to a second worker; the first to commit wins (ray) [s]
        loaders: processes that make training batches beside the training itself
        checkpoint_s: time between checkpoints of a training [s]
        progress: draw progress bars on stderr
    """

    executor: Literal["local", "ray"] = "local"
    address: str = ""
    workers: int = 1
    gpus: float = 0.0
    attempts: int = 3
    failures: int = 10
    deadline_s: float = 3600.0
    loaders: int = 1
    checkpoint_s: float = 600.0
    progress: bool = True


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """What a worker made of a scene: named arrays, frames left out, and counts to be added up."""

    arrays: Mapping[str, np.ndarray]
    skipped: Sequence[Skip] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Worker(Protocol):
    """Does one scene; owns its model and whatever else outlives a scene."""

    def __call__(self, scene: str) -> Shard:
        """What becomes the scene's shard."""


class Incomplete(RuntimeError):
    """Some scenes could not be done; the rest is committed, and the same command tries the missing ones again."""


def do_scene(artifact: Artifact, worker: Worker, scene: str, attempt: int = 1) -> None:
    """Has a worker do a scene and commits its shard, unless another one has committed it meanwhile."""
    begun = time.time()
    shard = worker(scene)
    if not artifact.done(scene, verify=True):  # an altered shard has the right size too
        facts = {"skipped": list(shard.skipped), "counts": dict(shard.counts), "attempt": attempt}
        artifact.commit_arrays(scene, shard.arrays, seconds=round(time.time() - begun, 3), **facts)

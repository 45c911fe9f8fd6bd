"""The unit of work: a scene, the worker that does it, the shard that comes of it, and how all that is carried out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from clipsweep.pipeline.datasets.rows import Skip
from clipsweep.pipeline.store import Artifact


@dataclass(frozen=True)
class RunConfig:
    """How the work is carried out; never changes what comes out."""

    executor: Annotated[
        Literal["local", "ray"],
        Field(description="local does all in this process; ray spreads scenes over workers"),
    ] = "local"
    address: Annotated[
        str,
        Field(
            description="HOST:PORT of a Ray cluster to join; empty starts one of its own on this "
            "machine and ends it after (ray)",
        ),
    ] = ""
    workers: Annotated[
        int,
        Field(
            ge=1,
            le=10000,
            description="workers that do scenes at the same time, and that train together (ray)",
        ),
    ] = 1
    gpus: Annotated[
        float,
        Field(
            ge=0,
            le=64,
            description="GPUs of each labelling or predicting worker, fractions allowed (ray); "
            "more than 0 trains on one each",
        ),
    ] = 0.0
    attempts: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="times that a scene or training may lose its worker before it fails (ray)",
        ),
    ] = 3
    failures: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000_000,
            description="scenes that may be given up before the whole run stops (ray)",
        ),
    ] = 10
    deadline_s: Annotated[
        float,
        Field(
            ge=1,
            le=1e9,
            description="time until a scene is given to a second worker too; first commit wins [s]",
        ),
    ] = 3600.0
    loaders: Annotated[
        int,
        Field(
            ge=0,
            le=256,
            description="processes that make training batches beside the training itself",
        ),
    ] = 1
    checkpoint_s: Annotated[
        float,
        Field(ge=0, le=1e9, description="time between checkpoints of a training [s]"),
    ] = 600.0
    progress: Annotated[bool, Field(description="draw progress bars on stderr")] = True


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

"""The unit of work: a shard, the worker that makes it, and how all that is carried out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import numpy as np
from pydantic import Field

from clipsweep.pipeline.datasets.rows import Skip
from clipsweep.pipeline.store import Artifact


@dataclass(frozen=True)
class RunConfig:
    """How the work is carried out; never changes what comes out."""

    executor: Annotated[
        Literal["local", "ray"],
        Field(description="local does all in this process; ray spreads shards over workers"),
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
            description="workers that make shards at the same time, and that train together (ray)",
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
            description="times that a shard or training may lose its worker before it fails (ray)",
        ),
    ] = 3
    failures: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000_000,
            description="shards that may be given up before the whole run stops (ray)",
        ),
    ] = 10
    deadline_s: Annotated[
        float,
        Field(
            ge=1,
            le=1e9,
            description="time until a shard is given to a second worker too; first commit wins [s]",
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
    """What a worker made: named arrays, frames left out, counts to be added up, and facts for the marker."""

    arrays: Mapping[str, np.ndarray]
    skipped: Sequence[Skip] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Worker(Protocol):
    """Makes one shard; owns its model and whatever else outlives a shard."""

    def __call__(self, name: str) -> Shard:
        """What becomes the shard of that name."""


class Incomplete(RuntimeError):
    """Some shards could not be made; the rest is committed, and the same command tries the missing ones again."""


def make_shard(artifact: Artifact, worker: Worker, name: str, attempt: int = 1) -> None:
    """Has a worker make a shard and commits it, unless another one has committed it meanwhile."""
    begun = time.time()
    shard = worker(name)
    if not artifact.done(name, verify=True):  # an altered shard has the right size too
        facts = {"skipped": list(shard.skipped), "counts": dict(shard.counts), "attempt": attempt}
        facts |= shard.facts
        artifact.commit_arrays(name, shard.arrays, seconds=round(time.time() - begun, 3), **facts)

"""Execution settings: local or Ray, workers, GPUs, retries, loaders, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field


@dataclass(frozen=True)
class RunConfig:
    """Execution settings (``run.*``); they never change the results."""

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
            description="workers that make shards at the same time, or train together (ray)",
        ),
    ] = 1
    gpus: Annotated[
        float,
        Field(
            ge=0,
            le=64,
            description="GPUs of each labelling or predicting worker, fractions allowed; "
            "above 0 each training worker uses one (ray)",
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
            description="failed shards after which the whole run stops (ray)",
        ),
    ] = 10
    deadline_s: Annotated[
        float,
        Field(
            ge=1,
            le=1e9,
            description="time after which a shard is also started on a second worker; the "
            "first to finish wins [s]",
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

"""Maps a worker over the scenes of a stage, and finishes the stage's artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from pipeline.datasets.rows import Skip
from pipeline.store import Artifact

if TYPE_CHECKING:
    from pipeline.config import Config


@dataclass(frozen=True)
class RunConfig:
    """How the work is carried out; never changes what comes out.

    Attributes:
        executor: local does all in this process
        loaders: processes that make training batches beside the training itself
        progress: draw progress bars on stderr
    """

    executor: Literal["local"] = "local"
    loaders: int = 1
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


def run_stage(
    artifact: Artifact,
    scenes: Sequence[str],
    make_worker: Callable[[], Worker],
    config: Config,
    inherited: Sequence[Skip] = (),
) -> Artifact:
    """Brings an artifact to completion: does the scenes that are not committed, then writes the manifest.

    Args:
        artifact: the stage's output.
        scenes: its shards, in order.
        make_worker: builds the worker; not called when nothing is left to do.
        config: the resolved configuration (``run`` and ``verify`` are read; all of it is stored).
        inherited: frames that the stage's inputs lack.

    Raises:
        BadInput: from the worker, when ``on_bad=fail``.
    """
    started = time.time()
    left = [scene for scene in scenes if not artifact.done(scene, config.verify)]
    if artifact.whole and not left:
        return artifact
    artifact.sweep_orphans()
    if left:
        worker = make_worker()
        for scene in tqdm(left, desc=artifact.stage, unit="scene", disable=not config.run.progress):
            begun = time.time()
            shard = worker(scene)
            seconds = round(time.time() - begun, 3)
            artifact.commit_arrays(
                scene, shard.arrays, skipped=list(shard.skipped), counts=dict(shard.counts), seconds=seconds
            )
    artifact.finish(scenes, config, started, inherited)
    return artifact

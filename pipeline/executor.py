"""Maps a worker over the scenes of a stage, here or on Ray, and finishes the stage's artifact."""

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
        executor: local does all in this process; ray spreads scenes over workers
        address: Ray cluster to join; empty starts one of its own on this machine and ends it afterwards (ray)
        workers: workers that do scenes at the same time (ray)
        gpus: GPUs of each labelling or predicting worker, fractions allowed (ray)
        attempts: times that a scene may lose its worker before it is given up (ray)
        deadline_s: time after which a scene is also given to a second worker; the first to commit wins (ray) [s]
        loaders: processes that make training batches beside the training itself
        progress: draw progress bars on stderr
    """

    executor: Literal["local", "ray"] = "local"
    address: str = ""
    workers: int = 2
    gpus: float = 0.0
    attempts: int = 3
    deadline_s: float = 3600.0
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


class Incomplete(RuntimeError):
    """Some scenes could not be done; the rest is committed, and the same command tries the missing ones again."""


def run_stage(
    artifact: Artifact,
    scenes: Sequence[str],
    make_worker: Callable[[], Worker],
    config: Config,
    inherited: Sequence[Skip] = (),
    gpu: bool = False,
) -> Artifact:
    """Brings an artifact to completion: does the scenes that are not committed, then writes the manifest.

    Args:
        artifact: the stage's output.
        scenes: its shards, in order.
        make_worker: builds a worker; not called when nothing is left to do.
        config: the resolved configuration (``run`` and ``verify`` are read; all of it is stored).
        inherited: frames that the stage's inputs lack.
        gpu: whether a worker runs a network.

    Raises:
        BadInput: from a worker, when ``on_bad=fail``.
        Incomplete: scenes were given up after ``run.attempts`` lost workers.
    """
    started = time.time()
    left = [scene for scene in scenes if not artifact.done(scene, config.verify)]
    if artifact.whole and not left:
        return artifact
    artifact.sweep_orphans()
    if left:
        done = len(scenes) - len(left)
        quiet = not config.run.progress
        with tqdm(total=len(scenes), initial=done, desc=artifact.stage, unit="scene", disable=quiet) as bar:
            if config.run.executor == "ray":
                from pipeline.cluster import run_on_ray

                run_on_ray(artifact, left, make_worker, config.run, gpu, bar.update)
            else:
                worker = make_worker()
                for scene in left:
                    do_scene(artifact, worker, scene)
                    bar.update()
    artifact.finish(scenes, config, started, inherited)
    return artifact


def do_scene(artifact: Artifact, worker: Worker, scene: str, attempt: int = 1) -> None:
    """Has a worker do a scene and commits its shard, unless another one has committed it meanwhile."""
    begun = time.time()
    shard = worker(scene)
    if not artifact.done(scene):
        facts = {"skipped": list(shard.skipped), "counts": dict(shard.counts), "attempt": attempt}
        artifact.commit_arrays(scene, shard.arrays, seconds=round(time.time() - begun, 3), **facts)

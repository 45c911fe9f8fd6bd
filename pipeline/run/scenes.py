"""Resumable execution of a stage over its scenes, locally or on Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.progress import progress_bar
from clipsweep.pipeline.stages.guard import guard_facts
from clipsweep.projection.errors import BadInput

_log = logging.getLogger(__name__)
INSTALL_RAY = 'pip install -e ".[ray]"'


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """Shard of a stage before it is committed: arrays, skipped frames, counts.

    Named arrays, frames left out, counts to be added up, and facts for the marker.
    """

    arrays: Mapping[str, np.ndarray]
    skipped: Sequence[Skip] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Worker(Protocol):
    """Interface of a stage's worker: makes one shard a call, and owns its model between calls."""

    def __call__(self, name: str) -> Shard:
        """Computes the shard of that name."""
        ...


class Incomplete(RuntimeError):
    """Error of a run in which some shards could not be made.

    The rest is committed, and the same command tries the missing ones again.
    """


def make_shard(artifact: Artifact, worker: Worker, name: str, attempt: int = 1) -> None:
    """Makes and commits one shard, unless another worker has committed it meanwhile."""
    begun = time.time()
    shard = worker(name)
    if not artifact.done(name, verify=True):  # an altered shard has the right size too
        facts = {"skipped": list(shard.skipped), "counts": dict(shard.counts), "attempt": attempt}
        facts |= shard.facts
        artifact.commit_arrays(name, shard.arrays, seconds=round(time.time() - begun, 3), **facts)


def run_stage(
    artifact: Artifact,
    shards: Sequence[str],
    make_worker: Callable[[], Worker],
    config: Config,
    gpu: bool = False,
) -> Artifact:
    """Runs a stage, locally or on Ray: makes the missing shards, then writes the manifest.

    Args:
        artifact: the stage's output.
        shards: their names, in order.
        make_worker: builds a worker; not called when nothing is left to do.
        config: the resolved configuration (``run`` and ``verify`` are read; all of it is stored).
        gpu: whether a worker runs a network.

    Raises:
        BadInput: from a worker, when ``on_bad=fail`` (local); a path that other nodes would read
            differently, or Ray is not installed (ray).
        Incomplete: shards were given up (ray).
    """
    if config.run.executor == "ray" and config.run.address:
        check_shared(config)
    started = time.time()
    left = [name for name in shards if not artifact.done(name, config.verify)]
    if not left and artifact.whole and list(artifact.manifest()["shards"]) == list(shards):
        _log.debug("%s: all %d shards are there", artifact.id, len(shards))
        return artifact
    artifact.sweep_orphans()
    _log.debug("%s: %d of %d shards are left to be made", artifact.id, len(left), len(shards))
    if left:
        done = len(shards) - len(left)
        show = config.run.progress
        with progress_bar(artifact.stage, len(shards), done, "shard", show) as bar:
            if config.run.executor == "ray":
                with needs_ray("run.executor"):
                    from clipsweep.pipeline.run.ray_scenes import run_on_ray

                run_on_ray(artifact, left, make_worker, config.run, gpu, bar.update, done)
            else:
                worker = make_worker()
                for name in left:
                    make_shard(artifact, worker, name)
                    bar.update()
    artifact.finish(shards, config, started, artifact.lost, **guard_facts())
    return artifact


@contextmanager
def needs_ray(where: str) -> Iterator[None]:
    """Turns a failed import of Ray into ``BadInput`` that tells how to install it."""
    try:
        yield
    except ImportError as error:
        raise BadInput(where, f"needs Ray ({error})", INSTALL_RAY) from None


def check_shared(config: Config) -> None:
    """Refuses relative paths of data and store on a cluster.

    Each node of a cluster would take them from where its own processes started.
    """
    for key, folder in (("store", config.store), ("data.root", config.data.root)):
        if not Path(folder).is_absolute():
            raise BadInput(
                key,
                f"{folder!r} is relative",
                "on a cluster, give the full path of a folder that nodes share",
            )

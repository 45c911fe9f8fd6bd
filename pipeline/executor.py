"""Maps a worker over the shards of a stage, here or on Ray, and finishes the stage's artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from clipsweep.pipeline.config import Config
from clipsweep.pipeline.store import Artifact
from clipsweep.pipeline.work import Worker, make_shard
from clipsweep.projection.errors import BadInput

INSTALL_RAY = 'pip install -e ".[ray]"'


def run_stage(
    artifact: Artifact,
    shards: Sequence[str],
    make_worker: Callable[[], Worker],
    config: Config,
    gpu: bool = False,
) -> Artifact:
    """Brings an artifact to completion: makes the shards that are not committed, then writes the manifest.

    Args:
        artifact: the stage's output.
        shards: their names, in order.
        make_worker: builds a worker; not called when nothing is left to do.
        config: the resolved configuration (``run`` and ``verify`` are read; all of it is stored).
        gpu: whether a worker runs a network.

    Raises:
        BadInput: from a worker, when ``on_bad=fail`` (local); a path that other nodes would read differently, or Ray is
            not installed (ray).
        Incomplete: shards were given up (ray).
    """
    if config.run.executor == "ray" and config.run.address:
        check_shared(config)
    started = time.time()
    left = [name for name in shards if not artifact.done(name, config.verify)]
    if not left and artifact.whole and list(artifact.manifest()["shards"]) == list(shards):
        return artifact
    artifact.sweep_orphans()
    if left:
        done = len(shards) - len(left)
        quiet = not config.run.progress
        with tqdm(total=len(shards), initial=done, desc=artifact.stage, unit="shard", disable=quiet) as bar:
            if config.run.executor == "ray":
                with needs_ray("run.executor"):
                    from clipsweep.pipeline.cluster import run_on_ray

                run_on_ray(artifact, left, make_worker, config.run, gpu, bar.update, done)
            else:
                worker = make_worker()
                for name in left:
                    make_shard(artifact, worker, name)
                    bar.update()
    artifact.finish(shards, config, started, artifact.lost)
    return artifact


@contextmanager
def needs_ray(where: str) -> Iterator[None]:
    """Turns a failed import of Ray within into ``BadInput`` with the installation as its cure."""
    try:
        yield
    except ImportError as error:
        raise BadInput(where, f"needs Ray ({error})", INSTALL_RAY) from None


def check_shared(config: Config) -> None:
    """Refuses relative folders: each node of a cluster would take them from where its own processes started."""
    for key, folder in (("store", config.store), ("data.root", config.data.root)):
        if not Path(folder).is_absolute():
            raise BadInput(
                key, f"{folder!r} is relative", "on a cluster, give the full path of a folder that nodes share"
            )

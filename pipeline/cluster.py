"""Scenes over Ray actors: placement is Ray's; retries, deadlines, giving up and the report are ours.

Ray is told to retry nothing. A worker commits its scene's shard itself, so a worker that dies, or that was thought dead
and was not, can at worst do a scene twice; both commits have the same bytes.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.store import Artifact, write_whole
from pipeline.work import Incomplete, RunConfig, Worker, do_scene
from projection.errors import BadInput

_DISK = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)
_POLL_S = 0.5
_BACK_OFF_S = 0.5


@contextmanager
def cluster(run: RunConfig) -> Iterator[None]:
    """Joins the cluster at ``run.address``, or starts one on this machine, and leaves or ends it afterwards.

    It never joins a cluster that nobody named, whatever runs on the machine or stands in ``RAY_ADDRESS``.
    """
    if ray.is_initialized():
        yield
        return
    if run.address:
        ray.init(address=run.address, log_to_driver=False)
    else:
        with tempfile.TemporaryDirectory(prefix="cs-", dir="/tmp", ignore_cleanup_errors=True) as folder:
            # Ray's socket paths must stay short; "local" is what keeps it from joining another cluster
            ray.init(
                address="local",
                num_cpus=max(run.workers, os.cpu_count() or 1),
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=folder,
            )
            try:
                yield
            finally:
                ray.shutdown()
        return
    try:
        yield
    finally:
        ray.shutdown()


class _Actor:
    """A process with a worker of its own."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        self._worker = make_worker()

    def do(self, artifact: Artifact, scene: str, attempt: int) -> None:
        do_scene(artifact, self._worker, scene, attempt)


@dataclass(slots=True)
class _Job:
    """A scene on its way."""

    scene: str
    attempts: int = 0
    ready_at: float = 0.0
    hedged: bool = False
    reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True, eq=False, slots=True)
class _Flight:
    """A scene that an actor has in hand."""

    job: _Job
    actor: Any
    since: float


class _Driver:
    """Hands scenes to actors until all are committed or given up."""

    def __init__(
        self, artifact: Artifact, make_worker: Callable[[], Worker], run: RunConfig, gpu: bool, tick: Callable[[], Any]
    ) -> None:
        self.artifact, self.run, self.tick = artifact, run, tick
        gpus = run.gpus if gpu else 0
        self.actor: Any = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Actor)
        self.make_worker = ray.put(make_worker)
        self.idle: list[Any] = []
        self.actors = 0
        self.flights: dict[Any, _Flight] = {}
        self.finished: set[str] = set()
        self.given_up: dict[str, list[str]] = {}

    def work(self, scenes: Sequence[str]) -> None:
        queue = deque(_Job(scene) for scene in scenes)
        while queue or self.flights:
            self._launch(queue)
            self._hedge(queue)
            ready, _ = ray.wait(list(self.flights), timeout=_POLL_S) if self.flights else ([], [])
            if not ready and not self.flights:
                time.sleep(_POLL_S)
            for ref in ready:
                self._land(ref, queue)

    def _launch(self, queue: deque[_Job]) -> None:
        """Gives scenes whose time has come to idle actors, and to new ones while there are too few."""
        for _ in range(len(queue)):
            if not self.idle and self.actors >= self.run.workers:
                return
            job = queue.popleft()
            if job.scene in self.finished:
                continue
            if job.ready_at > time.monotonic():
                queue.append(job)
                continue
            if not self.idle:
                self.idle.append(self.actor.remote(self.make_worker))
                self.actors += 1
            actor = self.idle.pop()
            job.attempts += 1
            ref = actor.do.remote(self.artifact, job.scene, job.attempts)
            self.flights[ref] = _Flight(job, actor, time.monotonic())

    def _hedge(self, queue: deque[_Job]) -> None:
        """Queues a scene once more when it is past its deadline, and makes room for a worker that may never return."""
        for flight in self.flights.values():
            job = flight.job
            if not job.hedged and time.monotonic() - flight.since > self.run.deadline_s:
                job.hedged = True
                self.actors -= 1
                queue.append(_Job(job.scene, job.attempts, hedged=True, reasons=job.reasons))

    def _land(self, ref: Any, queue: deque[_Job]) -> None:
        flight = self.flights.pop(ref)
        job = flight.job
        try:
            ray.get(ref)
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, BadInput) or (isinstance(cause, OSError) and cause.errno in _DISK):
                raise cause from None
            self._lost(job, f"{type(cause).__name__}: {cause}", queue)
            self.idle.append(flight.actor)
            return
        except RayError as error:
            self.actors -= 1
            self._lost(job, str(error).strip().splitlines()[0], queue)
            return
        self.idle.append(flight.actor)
        self._done(job.scene, queue)

    def _done(self, scene: str, queue: deque[_Job]) -> None:
        if scene in self.finished:
            return
        self.finished.add(scene)
        self.given_up.pop(scene, None)
        self.tick()
        # twins of a scene that is done need not be waited for
        for ref in [ref for ref, flight in self.flights.items() if flight.job.scene == scene]:
            flight = self.flights.pop(ref)
            ray.kill(flight.actor)
        for job in [job for job in queue if job.scene == scene]:
            queue.remove(job)

    def _lost(self, job: _Job, reason: str, queue: deque[_Job]) -> None:
        if self.artifact.done(job.scene):  # it committed and then died
            self._done(job.scene, queue)
            return
        job.reasons.append(reason)
        if job.attempts < self.run.attempts:
            job.ready_at = time.monotonic() + _BACK_OFF_S * 2 ** (job.attempts - 1)
            queue.append(job)
        else:
            self.given_up[job.scene] = job.reasons


def run_on_ray(
    artifact: Artifact,
    scenes: Sequence[str],
    make_worker: Callable[[], Worker],
    run: RunConfig,
    gpu: bool,
    tick: Callable[[], Any],
) -> None:
    """Does scenes on ``run.workers`` actors; ``report.json`` in the artifact says what became of each.

    Args:
        artifact: where shards are committed; on a file system that every node sees.
        scenes: what is to be done.
        make_worker: builds an actor's worker.
        run: how many workers, attempts, and the deadline.
        gpu: whether a worker gets ``run.gpus``.
        tick: called for each scene that is done.

    Raises:
        BadInput: from a worker.
        OSError: the disk is full or refuses writing.
        Incomplete: scenes were given up.
    """
    with cluster(run):
        driver = _Driver(artifact, make_worker, run, gpu, tick)
        try:
            driver.work(scenes)
        finally:
            report = {
                "expected": len(scenes),
                "done": len(driver.finished),
                "given_up": driver.given_up,
                "left": len(set(scenes) - driver.finished - driver.given_up.keys()),
            }
            write_whole(artifact.path / "report.json", json.dumps(report, indent=1).encode())
    if driver.given_up:
        scene, reasons = next(iter(driver.given_up.items()))
        raise Incomplete(
            f"{len(driver.given_up)} of {len(scenes)} scenes could not be done, first {scene} after {len(reasons)} "
            f"attempts ({reasons[-1]}); the others are kept, and the same command tries these again"
        )

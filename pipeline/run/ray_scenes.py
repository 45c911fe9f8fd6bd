"""Distributed labelling and inference on Ray: retries, deadlines, report.

Ray places the work; retries, deadlines, giving up and the report are done here.

Ray retries nothing. A worker commits its shard itself, so a worker that dies, or that was
thought dead and was not, can at worst make a shard twice; both commits have the same bytes.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from clipsweep.pipeline.artifacts.store import Artifact, write_whole
from clipsweep.pipeline.run.scenes import Incomplete, Worker, make_shard
from clipsweep.pipeline.run.settings import RunConfig
from clipsweep.pipeline.run.signals import raise_on_sigterm
from clipsweep.pipeline.stages.guard import under_guard
from clipsweep.projection.errors import BadInput

_DISK = (errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS, errno.EDQUOT)
_POLL_S = 0.5
_BACK_OFF_S = 0.5
_SHORT = 16  # letters of a folder for Ray's sockets, whose paths have a limit


@contextmanager
def ray_cluster(run: RunConfig) -> Iterator[None]:
    """Ray cluster of a run: joins the one at ``run.address``, or starts one on this machine.

    Afterwards it is left, or ended. It never joins a cluster that was not named, whatever runs on
    the machine or stands in ``RAY_ADDRESS``.

    Raises:
        BadInput: the cluster cannot be joined, or the address names none.
    """
    if run.address in ("auto", "local"):
        cure = 'give HOST:PORT, or "${RAY_ADDRESS:?}" inside a job of Ray'
        raise BadInput(
            "run.address", f"{run.address!r} names no cluster, but whichever runs here", cure
        )
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if ray.is_initialized():
        yield
        return
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(
        prefix="cs-",
        dir=usual if len(usual) <= _SHORT else "/tmp",  # noqa: S108
        ignore_cleanup_errors=True,
    ) as folder:
        if run.address:
            try:
                ray.init(address=run.address, **quiet)
            except (ConnectionError, ValueError, RayError) as error:
                cure = "check that it runs there, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
                raise BadInput(
                    "run.address", f"{run.address} cannot be joined ({_first_line(error)})", cure
                ) from None
        else:
            # a token of its own, or Ray would write one where other users can read it; and no usage
            # statistics
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            # "local" keeps it from joining another cluster; the paths of Ray's sockets must stay
            # short
            cpus = max(run.workers, os.cpu_count() or 1)
            ray.init(
                address="local", num_cpus=cpus, include_dashboard=False, _temp_dir=folder, **quiet
            )
        with raise_on_sigterm(
            "work on Ray was stopped"
        ):  # Ray's own answer ends the process with a status without meaning
            try:
                yield
            finally:
                ray.shutdown()


def check_room(workers: int, gpu: bool) -> None:
    """Checks that the Ray cluster has CPUs or GPUs for all training workers.

    Ray would wait for room and log nothing.

    Args:
        workers: each takes one CPU, or one GPU.
        gpu: whether it is a GPU.

    Raises:
        BadInput: there are fewer.
    """
    kind = "GPU" if gpu else "CPU"
    if ray.cluster_resources().get(kind, 0) < workers:
        asked = f"{workers} training workers take a whole {kind} each, of {_resources()}"
        raise BadInput("run.workers", asked, "take fewer" + ", or run.gpus=0" * gpu)


class _Actor:
    """Ray actor: a process with a stage's worker of its own."""

    def build(self, make_worker: Callable[[], Worker]) -> None:
        self._worker = make_worker()

    def do(self, artifact: Artifact, name: str, attempt: int) -> None:
        make_shard(artifact, self._worker, name, attempt)


@dataclass(eq=False, slots=True)
class _Job:
    """Shard to be made on Ray, with its attempts.

    Attributes:
        name: its name.
        attempts: how often it was given to a worker.
        ready_at: ``time.monotonic()`` before which it is not tried again.
        reasons: why each attempt failed.
    """

    name: str
    attempts: int = 0
    ready_at: float = 0.0
    reasons: list[str] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Flight:
    """Ray task in flight on an actor.

    It makes a shard or builds the actor's worker. An overdue one no longer counts as a worker.
    """

    actor: Any
    job: _Job | None
    since: float
    overdue: bool = False


class _Driver:
    """Scheduler of Ray actors, until all shards are done or given up.

    Never more shards than workers are under way.
    """

    def __init__(
        self,
        artifact: Artifact,
        make_worker: Callable[[], Worker],
        run: RunConfig,
        gpu: bool,
        tick: Callable[[], Any],
    ) -> None:
        self.artifact = replace(artifact, parts=())  # sent with every job
        self.run = run
        self.tick = tick
        self.gpus = run.gpus if gpu else 0.0
        self.actor: Any = ray.remote(
            num_cpus=1, num_gpus=self.gpus, max_restarts=0, max_task_retries=0
        )(_Actor)
        self.make_worker = ray.put(make_worker)
        self.queue: deque[_Job] = deque()
        self.idle: list[Any] = []
        self.flights: dict[Any, _Flight] = {}
        self.failed_builds = 0
        self.finished: dict[str, _Job] = {}
        self.given_up: dict[str, _Job] = {}

    def work(self, names: Sequence[str]) -> None:
        self.queue.extend(_Job(name) for name in names)
        while len(self.finished) + len(self.given_up) < len(names):
            self._hire(len(names) - len(self.finished) - len(self.given_up))
            self._launch()
            ready, _ = ray.wait(list(self.flights), timeout=_POLL_S) if self.flights else ([], [])
            if not self.flights:
                time.sleep(_POLL_S)  # every job waits for its next attempt
            for ref in ready:
                self._land(self.flights.pop(ref), ref)
            self._check_deadlines()

    def _staff(self) -> int:
        return len(self.idle) + sum(not flight.overdue for flight in self.flights.values())

    def _hire(self, jobs: int) -> None:
        for _ in range(min(self.run.workers, jobs) - self._staff()):
            actor = self.actor.remote()
            self.flights[actor.build.remote(self.make_worker)] = _Flight(
                actor, None, time.monotonic()
            )

    def _launch(self) -> None:
        """Dispatches shards that are due to idle actors."""
        for _ in range(len(self.queue)):
            if not self.idle:
                return
            job = self.queue.popleft()
            if job.ready_at > time.monotonic():
                self.queue.append(job)
                continue
            actor = self.idle.pop()
            job.attempts += 1
            ref = actor.do.remote(self.artifact, job.name, job.attempts)
            self.flights[ref] = _Flight(actor, job, time.monotonic())

    def _land(self, flight: _Flight, ref: Any) -> None:
        """Handles the result of a finished Ray task."""
        job = flight.job
        try:
            ray.get(ref)
        except RayTaskError as error:  # the worker is alive and reports the error
            cause = error.cause or error
            if job is None or (isinstance(cause, OSError) and cause.errno in _DISK):
                raise cause from None
            self._rest(flight.actor)
            self._failed(job, f"{type(cause).__name__}: {cause}", final=isinstance(cause, BadInput))
        except RayError as error:  # the worker, its node or the way there is lost
            if job is None:
                self._not_built(_first_line(error))
            else:
                self._failed(job, _first_line(error))
        else:
            self.failed_builds = 0
            self._rest(flight.actor)
            if job:
                self._done(job)

    def _rest(self, actor: Any) -> None:
        if self._staff() < self.run.workers:
            self.idle.append(actor)
        else:
            ray.kill(actor)

    def _check_deadlines(self) -> None:
        """Speculative retry of shards past their deadline.

        Whichever commits first wins.
        """
        begun = time.monotonic() - self.run.deadline_s
        limit = f"not done within {self.run.deadline_s:g} s"
        late = {
            ref: flight
            for ref, flight in self.flights.items()
            if flight.since < begun and not flight.overdue
        }
        hung = [ref for ref, flight in self.flights.items() if flight.overdue]
        builds = [ref for ref, flight in late.items() if flight.job is None]
        # hung workers may hold the room that new ones wait for
        for ref in [*builds, *(hung if builds else [])]:
            ray.kill(self.flights.pop(ref).actor)
        if builds and not hung:
            self._not_built(limit)
        for ref, flight in late.items():
            if flight.job and ref in self.flights:
                flight.overdue = True
                self._failed(flight.job, limit)

    def _not_built(self, reason: str) -> None:
        """Ends a run whose workers cannot be built at all.

        While others work, one that cannot be placed is no harm.
        """
        self.failed_builds += 1
        at_work = self.idle or any(
            flight.job and not flight.overdue for flight in self.flights.values()
        )
        if not at_work and self.failed_builds >= self.run.attempts:
            needs = f"1 CPU and {self.gpus:g} GPU of {_resources()}"
            raise Incomplete(f"no worker could be started ({reason}); each needs {needs}")

    def _failed(self, job: _Job, reason: str, final: bool = False) -> None:
        if self.artifact.done(job.name, verify=True):  # it committed and then died
            self._done(job)
            return
        job.reasons.append(reason)
        elsewhere = any(
            flight.job is job and not flight.overdue for flight in self.flights.values()
        )
        if not final and (elsewhere or job in self.queue):
            return
        if not final and job.attempts < self.run.attempts:
            job.ready_at = time.monotonic() + _BACK_OFF_S * 2 ** (job.attempts - 1)
            self.queue.append(job)
            return
        self.given_up[job.name] = job
        self._forget(job)
        if len(self.given_up) > self.run.failures:
            raise Incomplete(
                f"stopped, as more than run.failures={self.run.failures} shards failed; "
                f"{self.worst()}"
            )

    def _done(self, job: _Job) -> None:
        self.finished[job.name] = job
        self.tick()
        self._forget(job)

    def _forget(self, job: _Job) -> None:
        """Cancels the other Ray tasks of a shard."""
        for ref in [ref for ref, flight in self.flights.items() if flight.job is job]:
            ray.kill(self.flights.pop(ref).actor)
        if job in self.queue:
            self.queue.remove(job)

    def dismiss(self) -> None:
        """Stops all Ray actors."""
        for actor in [*self.idle, *(flight.actor for flight in self.flights.values())]:
            ray.kill(actor)

    def worst(self) -> str:
        name, job = next(iter(self.given_up.items()))
        return f"first {name} after {job.attempts} attempt(s): {job.reasons[-1]}"

    def report(self, kept: int, left: int) -> None:
        """Writes ``report.json``: the outcome of every shard."""
        report = {
            "expected": kept + left,
            "kept": kept,
            "done": len(self.finished),
            "given_up": {name: job.reasons for name, job in self.given_up.items()},
            "left": left - len(self.finished) - len(self.given_up),
            "retried": {name: job.reasons for name, job in self.finished.items() if job.reasons},
        }
        write_whole(self.artifact.path / "report.json", json.dumps(report, indent=1).encode())


def run_on_ray(
    artifact: Artifact,
    names: Sequence[str],
    make_worker: Callable[[], Worker],
    run: RunConfig,
    gpu: bool = False,
    tick: Callable[[], Any] = lambda: None,
    kept: int = 0,
) -> None:
    """Makes the shards of a stage on ``run.workers`` Ray actors, with retries and deadlines.

    ``report.json`` in the artifact lists the outcome of each.

    A shard whose input is bad is given up at once, one that loses its worker after
    ``run.attempts``; the others go on until more than ``run.failures`` are given up. The report
    counts ``expected`` = ``kept`` + ``done`` + ``given_up`` + ``left``, with every failed attempt's
    reason.

    Args:
        artifact: where shards are committed; on a file system that every node sees.
        names: the shards to be made.
        make_worker: builds an actor's worker.
        run: how many workers, attempts, and the deadline.
        gpu: whether a worker gets ``run.gpus``.
        tick: called for each shard that is made.
        kept: shards that were committed before.

    Raises:
        OSError: the disk is full or refuses writing.
        Incomplete: shards were given up, or no worker could be started.
        BadInput: the cluster cannot be joined, or a worker cannot be built.
    """
    # Ray reports lost workers on stdout, which tools keep for their one path
    with redirect_stdout(sys.stderr), ray_cluster(run):
        driver = _Driver(artifact, under_guard(make_worker), run, gpu, tick)
        try:
            driver.work(names)
        finally:
            driver.dismiss()
            driver.report(kept, len(names))
    if driver.given_up:
        raise Incomplete(
            f"{len(driver.given_up)} of {len(names)} shards could not be made, {driver.worst()}; "
            "the others are kept, and the same command tries these again"
        )


def _resources() -> str:
    have = ray.cluster_resources()
    return f"the cluster's {have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

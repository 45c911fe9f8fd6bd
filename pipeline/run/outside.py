"""Helper process: does a part of a run outside of the restrictions that the run is under."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TypeVar

from clipsweep.pipeline.run.signals import Stopped, defer_signals, raise_on_sigterm

T = TypeVar("T")
_POLL_S = 0.1
_SIGNAL_OF_PARENTS_DEATH = 1


class Outside:
    """Runs jobs in a helper process, one after another; in this process if there is none."""

    def __init__(self, jobs: Connection | None, process: BaseProcess | None) -> None:
        self._jobs = jobs
        self._process = process

    @property
    def forked(self) -> bool:
        """Whether there is a helper process."""
        return self._process is not None

    def __call__(self, job: Callable[[], T]) -> T:
        """Result of a job; its error is raised here.

        SIGTERM and SIGINT are passed on, and end this process after the job has ended.
        """
        if self._jobs is None or self._process is None:
            return job()
        self._jobs.send(job)
        passed_on = False
        with defer_signals() as received:
            while not self._jobs.poll(_POLL_S):
                if received and not passed_on:
                    self._process.terminate()
                    passed_on = True
        try:
            result, error, trace = self._jobs.recv()
        except EOFError:
            self._process.join()
            if received:
                raise Stopped(received[0], "stopped") from None
            problem = f"a helper process ended with status {self._process.exitcode}"
            raise ChildProcessError(problem) from None
        if received and (error is None or isinstance(error, Stopped)):
            raise Stopped(received[0], error.progress if error else "stopped")
        if error is not None:
            raise error from RuntimeError(f"in a helper process:\n{trace}")
        return result


@contextmanager
def helper_process(fork: bool) -> Iterator[Outside]:
    """Helper process context: forks this process, whose helper ends with it.

    Args:
        fork: whether to; only where nothing has started threads yet.
    """
    if not fork:
        yield Outside(None, None)
        return
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, here))
    process.start()
    there.close()
    try:
        yield Outside(here, process)
    finally:
        here.close()
        process.terminate()
        process.join()


def _serve(jobs: Connection, other: Connection) -> None:
    """Runs jobs until the other end of the pipe is closed.

    Only that end passes signals on: those to its process group would come twice.
    """
    other.close()
    os.setpgid(0, 0)
    ctypes.CDLL(None).prctl(_SIGNAL_OF_PARENTS_DEATH, signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        try:
            job = jobs.recv()
        except (EOFError, OSError):
            return
        with raise_on_sigterm("stopped"):
            result: object = None
            error: BaseException | None = None
            trace = ""
            try:
                result = job()
            except BaseException as raised:
                error = raised
                trace = traceback.format_exc()
        with suppress(OSError):
            jobs.send((result, error, trace))

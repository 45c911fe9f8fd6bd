"""Multithreading of compiled loops on the CPU, with torch's number of threads."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "clipsweep")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked child


def share(tasks: int, work: Callable[[int, int], None]) -> None:
    """Parallel for: calls ``work(first, last)`` on pieces of ``range(tasks)``.

    From ``torch.get_num_threads()`` threads. Which thread does which piece is left to chance, so a
    task must not depend on others, and must let go of the GIL.
    """
    threads = min(torch.get_num_threads(), tasks)
    if threads < 2:
        work(0, tasks)
        return
    step = max(1, tasks // (4 * threads))
    begins = iter(range(0, tasks, step))

    def drain() -> None:
        for begin in begins:
            work(begin, min(begin + step, tasks))

    others = [_pool().submit(drain) for _ in range(threads - 1)]
    drain()
    for other in others:
        other.result()

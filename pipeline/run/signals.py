"""Signal handling: SIGTERM and SIGINT end a run cleanly, with a training checkpoint.

What is half written is removed.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType


class Stopped(BaseException):
    """Raised when SIGTERM or SIGINT ends a run early; what was done is kept.

    Like ``KeyboardInterrupt`` it may come out of any line, so nothing that expects errors may catch
    it.

    Args:
        number: of the signal.
        progress: how far the work came.
    """

    def __init__(self, number: int, progress: str) -> None:
        self.number = number
        self.progress = progress
        super().__init__(number, progress)

    def __str__(self) -> str:
        return (
            f"{self.progress} by {signal.Signals(self.number).name}; run the same command again to "
            "go on"
        )


@contextmanager
def defer_signals() -> Iterator[Sequence[int]]:
    """Signal handling context: defers the first SIGTERM or SIGINT until a training checkpoint.

    The signal is appended to the list that the context gives. A second one acts as ever.

    Outside of the main thread, where Python receives no signals, nothing changes.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    for number in numbers:
        signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


@contextmanager
def raise_on_sigterm(progress: str) -> Iterator[None]:
    """Signal handling context: SIGTERM raises ``Stopped``.

    The signal's default action would leave half-written folders behind.

    Outside of the main thread, where Python receives no signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number, progress)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

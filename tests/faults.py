"""A worker with scripted failures, in whichever process it runs."""

from __future__ import annotations

import errno
import os
import signal
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.scenes import Shard
from clipsweep.projection.errors import BadInput


def full_disk(_: int) -> None:
    """Stands in for ``os.fsync``."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class Faulty:
    """Makes a shard out of a scene's name alone, unless a fault is planned for that attempt.

    Attributes:
        notes: folder in which each call leaves a file ``<scene>@<process>@<unique>``.
        faults: by scene, what happens at the first, second, ... call; after the last, nothing. A
            call that is ``held`` waits in the middle of its scene until its process is killed.
        seconds: what a scene takes [s].
    """

    notes: Path
    faults: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seconds: float = 0.0

    def build(self) -> Faulty:
        return self

    def calls(self, scene: str = "*") -> list[int]:
        """Processes of the calls so far, oldest first."""
        files = sorted(self.notes.glob(f"{scene}@*"), key=lambda path: path.stat().st_mtime_ns)
        return [int(path.name.split("@")[1]) for path in files]

    def held(self, scene: str, timeout_s: float = 300.0) -> int:
        """Waits for the first call of a scene that is to be held; answers its process."""
        deadline = time.monotonic() + timeout_s
        while not (calls := self.calls(scene)):
            assert time.monotonic() < deadline, f"no worker took {scene} up"
            time.sleep(0.02)
        return calls[0]

    def release(self) -> None:
        """Lets all calls go on that are held, for a test that failed and must end."""
        (self.notes / "released").touch()

    def __call__(self, scene: str) -> Shard:
        planned = self.faults.get(scene, ())
        before = len(self.calls(scene))
        (self.notes / f"{scene}@{os.getpid()}@{uuid.uuid4().hex}").touch()
        self._fail(planned[before] if before < len(planned) else "")
        time.sleep(self.seconds)
        random = np.random.default_rng(list(scene.encode()))
        return Shard({"x": random.integers(0, 256, 1000, np.uint8)}, counts={"calls": 1})

    def _fail(self, fault: str) -> None:
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif fault == "hung":
            time.sleep(600)
        elif fault == "held":
            while not (self.notes / "released").exists():
                time.sleep(0.02)
        elif fault == "memory":
            np.empty(2**60, np.uint8)
        elif fault == "bad input":
            raise BadInput("x.jpg", "is no JPEG", "copy it again")
        elif fault == "full disk":
            os.fsync = full_disk


def bad_training(notes: Path, config: Config) -> None:
    """A training whose input is bad; each start leaves a file in ``notes``."""
    (notes / uuid.uuid4().hex).touch()
    raise BadInput("x.bin", "is truncated", "copy it again")

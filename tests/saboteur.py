"""A tool in which every stage tries to read a file of human labels, in any way.

usage: saboteur.py TOOL RECORD.json PLANTED.json [argument of the tool ...]

``PLANTED.json`` names the label file and links to it; ``RECORD.json`` gets a line for each attempt.
"""

from __future__ import annotations

import json
import mmap
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.run import scenes
from clipsweep.pipeline.stages import dataset
from tests.helpers import ROOT


def _mmap(file: str) -> bytes:
    with open(file, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data[:]


def _descriptor(file: str) -> bytes:
    number = os.open(file, os.O_RDONLY)
    try:
        return os.read(number, 1 << 20)
    finally:
        os.close(number)


def _relative(file: str) -> bytes:
    folder = os.open(Path(file).parents[1], os.O_RDONLY | os.O_PATH)
    try:
        number = os.open(f"{Path(file).parent.name}/{Path(file).name}", os.O_RDONLY, dir_fd=folder)
        with open(number, "rb") as stream:
            return stream.read()
    finally:
        os.close(folder)


def _child(file: str) -> bytes:
    return subprocess.run(["cat", file], capture_output=True, check=True).stdout


def _renamed(file: str) -> bytes:
    """By a child process, which the hook is not told of."""
    there = os.environ["ELSEWHERE"] + "/renamed.bin"
    subprocess.run(["mv", file, there], capture_output=True, check=True)
    try:
        return pyarrow.OSFile(there).read()
    finally:
        subprocess.run(["mv", there, file], check=True)


def _linked(file: str) -> bytes:
    there = Path(os.environ["ELSEWHERE"]) / "linked.bin"
    os.link(file, there)
    try:
        return pyarrow.OSFile(str(there)).read()
    finally:
        there.unlink()


def _torch(file: str) -> bytes:
    size = os.stat(file).st_size
    return torch.from_file(file, size=size, dtype=torch.uint8).numpy().tobytes()


FROM_PYTHON: dict[str, Callable[[str], bytes]] = {
    "open": lambda file: Path(file).read_bytes(),
    "os.open": _descriptor,
    "dir_fd": _relative,
    "numpy.fromfile": lambda file: np.fromfile(file, np.uint8).tobytes(),
    "mmap": _mmap,
    "os.link": _linked,
}
"""Ways that the audit hook is told of."""
BESIDE_PYTHON: dict[str, Callable[[str], bytes]] = {
    "pyarrow.memory_map": lambda file: pyarrow.memory_map(file).read(),
    "pyarrow.OSFile": lambda file: pyarrow.OSFile(file).read(),
    "torch.from_file": _torch,
    "child process": _child,
    "rename": _renamed,
}
"""Ways that the kernel alone can refuse."""


def _attempt(
    stage: str, record: Path, planted: Mapping[str, str], ways: Mapping[str, Callable[[str], bytes]]
) -> None:
    for name, file in planted.items():
        for way, read in (FROM_PYTHON if name == "foreign hard link" else ways).items():
            try:
                outcome = f"read {len(read(file))} bytes"
            except subprocess.CalledProcessError as error:
                outcome = error.stderr.decode()
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            row = {"stage": stage, "file": name, "way": way, "outcome": outcome}
            with record.open("a") as stream:
                stream.write(json.dumps(row) + "\n")


def sabotage(
    record: Path,
    planted: Mapping[str, str],
    ways: Mapping[str, Callable[[str], bytes]],
    patch: Callable[[Any, str, Any], None],
) -> None:
    """Makes each stage attempt to read what is planted before its own work, once.

    Args:
        record: file that gets a line for each attempt.
        planted: path of what is planted, by what it is called in the record.
        ways: of reading it.
        patch: sets an attribute.
    """
    tried: set[str] = set()

    def once(stage: str) -> None:
        if stage not in tried:
            tried.add(stage)
            _attempt(stage, record, planted, ways)

    make_shard = scenes.make_shard
    getitem = dataset.TrainingFrames.__getitem__
    commit = Artifact.commit

    def in_stage(artifact: Artifact, *arguments: Any) -> None:
        once(artifact.stage)
        make_shard(artifact, *arguments)

    def in_loader(self: dataset.TrainingFrames, item: tuple[int, int]) -> Any:
        once("data loader")
        return getitem(self, item)

    def in_checkpoint(self: Artifact, name: str, payload: bytes, **facts: Any) -> None:
        if name == "state":
            once("checkpoint")
        commit(self, name, payload, **facts)

    patch(scenes, "make_shard", in_stage)
    patch(dataset.TrainingFrames, "__getitem__", in_loader)
    patch(Artifact, "commit", in_checkpoint)


if __name__ == "__main__":
    _, tool, to, names, *rest = sys.argv
    sys.argv = [f"{tool}.py", *rest]
    everything = json.loads(Path(names).read_text())
    sabotage(Path(to), everything, {**FROM_PYTHON, **BESIDE_PYTHON}, setattr)
    runpy.run_path(f"{ROOT}/tools/{tool}.py", run_name="__main__")

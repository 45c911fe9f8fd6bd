"""Benchmark results as JSON lines: tables can be made again, and a stopped run resumed.

A row is named by its benchmark, its name and its configuration, and by the code that made it. A row
that is there is not measured again.
"""

from __future__ import annotations

import ast
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from clipsweep.pipeline.artifacts.store import digest_files, digest_of, write_whole
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.projection.errors import BadInput

_CODE = ("projection", "distill", "pipeline")
_ELSEWHERE = ("run", "store", "verify")
"""Settings that decide where and how fast something is made, not what."""


@dataclass(frozen=True, slots=True)
class Job:
    """Benchmark row to be measured.

    Attributes:
        name: first column of its table.
        arguments: command line of the configuration that makes it.
        make: measures it; gives a dataclass of its values.
    """

    name: str
    arguments: Sequence[str]
    make: Callable[[], Any]


def code_digest() -> str:
    """Digest of the library's code: comments and docstrings do not count.

    It is taken of the syntax trees.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parents[2]
    for folder in _CODE:
        for path in sorted((package / folder).rglob("*.py")):
            tree = ast.parse(path.read_bytes())
            for node in ast.walk(tree):
                _drop_docstring(node)
            digest.update(f"{path.relative_to(package)} {ast.dump(tree)}".encode())
    return digest.hexdigest()[:12]


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    if ast.get_docstring(node, clean=False) is not None:
        node.body[:1] = []


def config_digest(arguments: Sequence[str]) -> str:
    """Digest of the settings and the data that decide a row, wherever the data lie.

    The demo world follows from its settings; other data count by the tables of their index.
    """
    config = load_config(arguments)
    names = [item.name for item in dataclasses.fields(Config) if item.name not in _ELSEWHERE]
    values = config.values(*names)
    values["data"]["root"] = Path(config.data.root).name
    if not config.make_demo:
        tables = DATASETS[config.data.kind].tables(config.data)
        values["tables"] = _digest_files(tuple(tables))
    return digest_of(values)[:12]


@cache
def _digest_files(paths: tuple[Path, ...]) -> str:
    return digest_files(paths)


class _Made(TypedDict):
    """What made a benchmark row: settings, code, day and machine."""

    name: str
    data: str
    config: str
    code: str
    date: str
    machine: str


class GainRow(TypedDict):
    """Gain of a row over another one, with a 95 % interval over scenes."""

    over: str
    miou: float
    low: float
    high: float
    scenes: int


class ScoreRow(_Made):
    """Benchmark row of scores."""

    miou: Annotated[list[float], Field(min_length=1)]
    accuracy: Annotated[list[float], Field(min_length=1)]
    iou: dict[str, float | None]
    note: str
    gains: NotRequired[list[GainRow]]


class RatioRow(_Made):
    """Benchmark row of a ratio to a peer."""

    unit: str
    ours: float
    peer_name: str
    peer: float
    ratio: float
    bar: float | None


_ROW: TypeAdapter[Any] = TypeAdapter(ScoreRow | RatioRow)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a results file, oldest first; none where there is no file.

    Raises:
        BadInput: the file cannot be read, or a line is no row.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(path, f"cannot be read ({error.strerror})", "give another folder") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(_ROW.validate_python(json.loads(line)))
        except ValueError:
            raise BadInput(path, f"line {number} is no row", "delete that line") from None
    return rows


Ratios = Callable[[], Iterable[Mapping[str, Any]]]


class Results:
    """Benchmark results of one benchmark in a folder.

    Args:
        folder: where ``NAME.jsonl`` lies; made where it is missing.
        bench: the benchmark's name.

    Raises:
        BadInput: the folder cannot be written, or its file holds something else than rows.
    """

    def __init__(self, folder: Path, bench: str) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInput(
                folder, f"is no folder ({error.strerror})", "give another out="
            ) from None
        if not os.access(folder, os.W_OK):
            raise BadInput(folder, "cannot be written", "give another out=")
        self.path = folder / f"{bench}.jsonl"
        self._made = {
            "code": code_digest(),
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
        }
        read_rows(self.path)  # before hours of measuring

    def rows(self, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
        """Benchmark row of each job: read from the file, or measured and written there."""
        for job in jobs:
            data = Path(load_config(job.arguments).data.root).name
            key = {"name": job.name, "data": data, "config": config_digest(job.arguments)}
            wanted = {**key, "code": self._made["code"]}
            there = [row for row in read_rows(self.path) if wanted.items() <= row.items()]
            yield from there or self._write([{**dataclasses.asdict(job.make()), **key}])

    def ratios(self, measure: Ratios) -> Iterator[dict[str, Any]]:
        """Benchmark rows measured beside one another: all read from the file, or all anew."""
        made_by = {name: self._made[name] for name in ("code", "machine")}
        there = [row for row in read_rows(self.path) if made_by.items() <= row.items()]
        yield from there or self._write([{**row, "data": "", "config": ""} for row in measure()])

    def each(self, measured: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Benchmark rows, each written as soon as it is measured, all anew."""
        for row in measured:
            yield from self._write([{**row, "data": "", "config": ""}])

    def _write(self, made: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Writes rows at once, each in place of that of older code or other settings.

        The file is read again under a lock on its folder: another run may have written meanwhile.
        """
        new = {_place(row): {**row, **self._made} for row in made}
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            all_rows = {_place(row): row for row in read_rows(self.path)} | new
            lines = [json.dumps(row) + "\n" for row in all_rows.values()]
            write_whole(self.path, "".join(lines).encode())
        finally:
            os.close(folder)
        return list(new.values())


def _place(row: dict[str, Any]) -> tuple[str, str]:
    return row["name"], row["data"]


def machine() -> str:
    """Processor, cores, GPU and Python of this machine."""
    cores = os.cpu_count()
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {cores} cores{gpu}, Python {platform.python_version()}"

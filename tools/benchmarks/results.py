"""Benchmark results as JSON lines: tables can be made again, and a stopped run resumed.

A row is named by its benchmark, its name and its configuration, and by the code that made it. A row
that is there is not measured again.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clipsweep.pipeline.artifacts.store import digest_of, write_whole
from clipsweep.pipeline.config import Config, load_config
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
    """Digest of the settings that decide a row; of ``data.root`` its last folder alone."""
    config = load_config(arguments)
    names = [item.name for item in dataclasses.fields(Config) if item.name not in _ELSEWHERE]
    values = config.values(*names)
    values["data"]["root"] = Path(config.data.root).name
    return digest_of(values)[:12]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a results file, oldest first; none where there is no file.

    Raises:
        BadInput: a line is no row.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append({**row, "name": row["name"], "data": row["data"]})
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(path, f"line {number} is no row: {error}", "delete that line") from error
    return rows


Ratios = Callable[[], Iterable[Mapping[str, Any]]]


class Results:
    """Benchmark results of one benchmark in a folder.

    Args:
        folder: where ``NAME.jsonl`` lies; made where it is missing.
        bench: the benchmark's name.
    """

    def __init__(self, folder: Path, bench: str) -> None:
        self.path = folder / f"{bench}.jsonl"
        self._code = code_digest()
        self._rows = read_rows(self.path)

    def rows(self, jobs: Iterable[Job]) -> Iterator[dict[str, Any]]:
        """Benchmark row of each job: read from the file, or measured and written there."""
        for job in jobs:
            data = Path(load_config(job.arguments).data.root).name
            key = {"name": job.name, "data": data, "config": config_digest(job.arguments)}
            yield self._find(key) or self._write(key, dataclasses.asdict(job.make()))

    def ratios(
        self, measure: Callable[[], Iterable[Mapping[str, Any]]]
    ) -> Iterator[dict[str, Any]]:
        """Benchmark rows measured beside one another: all read from the file, or all anew."""
        there = [row for row in self._rows if row["code"] == self._code]
        if there:
            yield from there
            return
        for row in list(measure()):
            yield self._write({"name": row["name"], "data": "", "config": ""}, row)

    def _find(self, key: dict[str, str]) -> dict[str, Any] | None:
        wanted = {**key, "code": self._code}
        return next((row for row in self._rows if wanted.items() <= row.items()), None)

    def _write(self, key: dict[str, str], values: Mapping[str, Any]) -> dict[str, Any]:
        """Writes a row, in place of that of older code or other settings."""
        row = {
            **values,
            **key,
            "code": self._code,
            "date": datetime.now(UTC).date().isoformat(),
            "machine": machine(),
        }
        same = [i for i, old in enumerate(self._rows) if _place(old) == _place(row)]
        if same:
            self._rows[same[0]] = row
        else:
            self._rows.append(row)
        write_whole(self.path, "".join(json.dumps(each) + "\n" for each in self._rows).encode())
        return row


def _place(row: dict[str, Any]) -> tuple[str, str]:
    return row["name"], row["data"]


def machine() -> str:
    """Processor, cores and Python of this machine."""
    cores = os.cpu_count()
    return f"{platform.machine()}, {cores} cores, Python {platform.python_version()}"

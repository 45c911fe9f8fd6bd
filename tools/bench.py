"""Runs benchmarks and experiments, and writes bench.json.

Benchmarks are ratios to peers measured in the same run.

usage: python tools/bench.py projection|sparse|teacher|input|ray [out=bench.json]
       python tools/bench.py demo|fusion|ablation|shares|pixels [DATA.yaml ...] [key=value ...]
           [out=bench.json]
       python tools/bench.py transfer [key=value ...] [out=bench.json]

projection, sparse and input need the sample data (CLIPSWEEP_DATA, default ../shared/data). The
experiments take any data set with truth, and configs/demo.yaml when none is named (ablation:
configs/ablation.yaml); what is trained already is not trained again. demo: labels before and after
fusion, the student, and the lines below and above it. fusion: its steps. ablation: CLIP2Scene's
own. shares: fine-tuning on 1 to 100 % of the labels against training from scratch. transfer:
students of the demo's two rigs on the streets of both. pixels: settings of the teacher, on every
pixel of the demo's images.
"""

import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from clipsweep.pipeline.artifacts.store import write_whole
from clipsweep.pipeline.cli import Made, argument_names, main, say, without
from clipsweep.pipeline.config import Config
from clipsweep.projection.errors import BadInput
from clipsweep.projection.sweeps import merge
from clipsweep.tools.benchmarks import (
    experiments,
    fleet,
    pixels,
    projection,
    samples,
    sparse,
    teacher,
    training,
)
from clipsweep.tools.benchmarks.experiments import Line
from clipsweep.tools.benchmarks.row import Row

KEYS: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """Where to write."""

    out: Annotated[str, Field(description="file of the rows to write")] = "bench.json"


def run(name: str, settings: Sequence[str], config: Config, arguments: Arguments) -> Made:
    if name not in BENCHES and name not in EXPERIMENTS:
        raise BadInput(
            name, "is no benchmark", f"choose from {', '.join([*BENCHES, *EXPERIMENTS])}"
        )
    say(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}"
    )
    out = Path(arguments.out)
    if not out.parent.is_dir():
        raise BadInput(out.parent, "is no folder", "make it first")
    rows = _ratios(name) if name in BENCHES else _table(name, settings)
    write_whole(out, json.dumps(rows, indent=1).encode())
    return Made(out)


def _ratios(name: str) -> list[Row]:
    rows: list[Row] = []
    for row in BENCHES[name]():
        bar = "" if row["bar"] is None else f", bar {row['bar']:g}"
        peer = f"{row['peer_name']} {row['peer']:.4g}"
        say(
            f"{row['name']}: {row['ours']:.4g} {row['unit']}, {peer}: ratio {row['ratio']:.3g}{bar}"
        )
        rows.append(row)
    return rows


def _table(name: str, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Runs an experiment, saying each line of its Markdown table when it is done."""
    experiment, recipe = EXPERIMENTS[name]
    named = any("=" not in argument for argument in arguments)
    lines: list[Line] = []
    for line in experiment(
        [*([] if named or not recipe else [recipe]), "run.progress=false", *arguments]
    ):
        if not lines:
            say(experiments.head(line))
        say(str(line))
        lines.append(line)
    return [asdict(line) for line in lines]


def _data() -> Path:
    folder = Path(os.environ.get("CLIPSWEEP_DATA", "../shared/data"))
    if not folder.is_dir():
        raise BadInput(folder, "holds no sample data", "set CLIPSWEEP_DATA")
    return folder


def _sparse() -> Iterable[Row]:
    """One, four and ten merged sweeps of a real nuScenes frame."""
    frames = samples.frames(samples.open_devkit(_data() / "nuscenes-0523"))
    frame = max(frames, key=lambda frame: len(frame.sweeps))
    clouds = [merge(frame, sweeps, 5, 255.0, 1.0) for sweeps in (1, 4, 10)]
    return sparse.rows(
        [np.column_stack([c.xyz, c.intensity, c.age_s]).astype(np.float32) for c in clouds]
    )


BENCHES: dict[str, Callable[[], Iterable[Row]]] = {
    "projection": lambda: projection.rows(_data()),
    "sparse": _sparse,
    "teacher": teacher.rows,
    "input": lambda: training.rows(_data()),
    "ray": fleet.rows,
}

EXPERIMENTS: dict[str, tuple[Callable[[Sequence[str]], Iterator[Line]], str]] = {
    "demo": (experiments.steps, "configs/demo.yaml"),
    "fusion": (experiments.fusion, "configs/demo.yaml"),
    "ablation": (experiments.ablation, "configs/ablation.yaml"),
    "shares": (experiments.shares, "configs/demo.yaml"),
    "transfer": (experiments.transfer, ""),
    "pixels": (pixels.teacher_settings, "configs/demo.yaml"),
}

if __name__ == "__main__":
    given = sys.argv[1:]
    name = next(
        (argument for argument in given if "=" not in argument and not argument.startswith("-")), ""
    )
    rest = [argument for argument in given if argument != name]
    options = [argument for argument in rest if not argument.startswith("-")]
    settings = without(argument_names(Arguments), options)
    sys.exit(main(__doc__, KEYS, partial(run, name, settings), Arguments, rest))

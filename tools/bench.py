"""Benchmarks and experiments: mIoU, speed and memory, with the tables of tools/RESULTS.md.

A row of results is one JSON line.

Benchmarks compare with another library in the same run. A row that is in the results for this code
and these settings is not measured again, so a stopped run goes on.

usage: python tools/bench.py projection|sparse|teacher|input|ray|gpu [out=FOLDER]
       python tools/bench.py demo|fusion|ablation|rounds|few_labels|pixels [DATA.yaml ...]
           [key=value ...] [out=FOLDER] [smoke=true]
       python tools/bench.py transfer [key=value ...] [out=FOLDER]
       python tools/bench.py tables

projection, sparse, input and gpu need the sample data (CLIPSWEEP_DATA, default ../shared/data).
gpu measures one GPU in under ten minutes; device=cpu tries it without one. The
experiments take any data set with truth, and configs/demo.yaml when none is named (ablation:
configs/ablation.yaml). demo: labels before and after fusion, the student, a student with random
weights and one of all labels. fusion: what each of its steps gives. ablation: that of the
CLIP2Scene paper. rounds: a second round of self-training against one of as many steps, on the
demo's test streets. few_labels: fine-tuning on 1 to 100 % of the labels against training from
scratch, at equal steps, on the same. transfer: students of the demo's two rigs on the streets of
both. pixels: settings of the teacher, on every pixel of the demo's images. smoke=true: the same on
two streets and for one epoch, to see that it runs. tables: writes the tables of tools/RESULTS.md
from the published rows; out=tools/benchmarks/results publishes.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from clipsweep.pipeline.artifacts.store import write_whole
from clipsweep.pipeline.cli import Made, WrongUsage, argument_names, main, without
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.terminal import say
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import SweepLayout
from clipsweep.projection.sweeps import merge
from clipsweep.tools.benchmarks import (
    experiments,
    few_labels,
    fleet,
    gpu,
    pixels,
    projection,
    rounds,
    samples,
    sparse,
    tables,
    teacher,
    training,
)
from clipsweep.tools.benchmarks.results import Job, Results, machine
from clipsweep.tools.benchmarks.row import Row

KEYS: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arguments:
    """Arguments of the benchmarks: output folder, and a short smoke run."""

    out: Annotated[str, Field(description="folder of the results, one file a benchmark")] = "bench"
    smoke: Annotated[bool, Field(description="a small world and one epoch")] = False
    device: Annotated[Literal["cuda", "cpu"], Field(description="where gpu runs")] = "cuda"


def run(name: str, settings: Sequence[str], config: Config, arguments: Arguments) -> Made:
    if name == "tables":
        return _tables()
    if name not in [*BENCHES, *EXPERIMENTS, "gpu"]:
        known = ", ".join([*BENCHES, "gpu", *EXPERIMENTS, "tables"])
        if not name:
            raise WrongUsage("NAME", "is missing: bench.py NAME", f"choose from {known}")
        raise WrongUsage(name, "is no benchmark", f"choose from {known}")
    if config.on_bad == "skip":
        raise BadInput("on_bad", "is skip", "benchmarks score every frame: leave it out")
    results = Results(Path(arguments.out), name)
    if name in [*BENCHES, "gpu"] and arguments.smoke:
        raise BadInput("smoke", f"is true, which {name} does not offer", "leave it out")
    if name != "gpu" and arguments.device != "cuda":
        raise BadInput("device", f"is given, which {name} does not have", "leave it out")
    say(machine())
    if name in BENCHES:
        for row in results.ratios(BENCHES[name]):
            say(tables.ratio(row))
        return Made(results.path)
    if name == "gpu":
        return _gpu(results, arguments.device)
    experiment, recipe = EXPERIMENTS[name]
    named = any("=" not in setting for setting in settings)
    if named and not recipe:
        raise BadInput(settings[0], f"is a file, and {name} has recipes of its own", "leave it out")
    given = [*([] if named or not recipe else [recipe]), "run.progress=false", *settings]
    given += _smoke(name, given) if arguments.smoke else []
    for row in results.rows(experiment(given)):
        say(tables.score(row))
    return Made(results.path)


def _smoke(name: str, given: Sequence[str]) -> list[str]:
    """Settings of a smoke run: one epoch, and a demo data set of two streets.

    Raises:
        BadInput: the experiment is of two worlds.
    """
    if not EXPERIMENTS[name][1]:
        raise BadInput("smoke", f"is true, which {name} does not offer", "leave it out")
    config = load_config(given)
    if not config.make_demo:
        return ["train.epochs=1"]
    world = ["demo.train_scenes=1", "demo.val_scenes=1", f"data.root={config.data.root}-smoke"]
    mini = ["data.nuscenes.version=v1.0-mini", "data.train=mini_train", "data.eval=mini_val"]
    return ["train.epochs=1", *world, *mini]


def _gpu(results: Results, device: str) -> Made:
    """Rows of the GPU benchmark, each written at once: a machine may be lent for minutes only.

    Raises:
        BadInput: a part of it failed.
    """
    failed = []
    for row in results.each(gpu.rows(_data(), device)):
        say(tables.ratio(row))
        failed += [row["name"]] if row["unit"] == gpu.FAILED else []
    if failed:
        raise BadInput("; ".join(failed), "could not be measured", f"the others: {results.path}")
    return Made(results.path)


def _tables() -> Made:
    page = tables.PAGE
    write_whole(page, tables.filled(page.read_text()).encode())
    return Made(page)


def _data() -> Path:
    folder = Path(os.environ.get("CLIPSWEEP_DATA", "../shared/data"))
    if not folder.is_dir():
        raise BadInput(folder, "holds no sample data", "set CLIPSWEEP_DATA")
    return folder


def _sparse() -> Iterable[Row]:
    """Benchmark point clouds: one, four and ten merged sweeps of a real nuScenes frame."""
    frames = samples.frames(samples.open_devkit(_data() / "nuscenes-0523"))
    frame = max(frames, key=lambda frame: len(frame.sweeps))
    clouds = [merge(frame, sweeps, SweepLayout(ego_box_m=1.0)) for sweeps in (1, 4, 10)]
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

EXPERIMENTS: dict[str, tuple[Callable[[Sequence[str]], Iterator[Job]], str]] = {
    "demo": (experiments.steps, "demo"),
    "fusion": (experiments.fusion, "demo"),
    "ablation": (experiments.ablation, "ablation"),
    "rounds": (rounds.rounds, "demo"),
    "few_labels": (few_labels.few_labels, "demo"),
    "transfer": (experiments.transfer, ""),
    "pixels": (pixels.teacher_settings, "demo"),
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

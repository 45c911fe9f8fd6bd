"""Benchmark of Ray's cost a scene, and of planning a fleet of 1,000 scenes (40,000 key frames)."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from clipsweep.pipeline.artifacts.index import Row
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config, DemoConfig, load_config
from clipsweep.pipeline.datasets import DATASETS, DataConfig, nuscenes
from clipsweep.pipeline.demo.write import write_demo
from clipsweep.pipeline.run.scenes import Shard, Worker, make_shard, run_stage
from clipsweep.pipeline.run.settings import RunConfig
from clipsweep.pipeline.stages import pixels as pixels_stage
from clipsweep.pipeline.stages.index import make_index, split_scenes
from clipsweep.projection.frames import Frame
from clipsweep.tools.benchmarks.row import Row as BenchRow

_TURNS = 3
_SCENES = 8
_WARM = 2


def rows(scenes: int = 1000) -> Iterator[BenchRow]:
    """Benchmark rows: Ray against the same work in this process, then planning and skipping.

    Planning and skipping run in a process of their own.

    Args:
        scenes: size of the simulated fleet.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield from _cost(Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        yield from _fleet(Path(folder), scenes)


# --- Ray's cost -----------------------------------------------------------------------------------


class _Small:
    """Stub worker: shards of a few bytes."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, name: str) -> Shard:
        return Shard({"x": np.zeros(4, np.uint8)})


class _Again:
    """Labels the images of one scene under any name, on one thread."""

    def __init__(self, config: Config, index: Artifact) -> None:
        torch.set_num_threads(1)
        (part,) = split_scenes(index)
        self.worker = pixels_stage.PixelWorker(config, index, (part,), None)
        self.shard = part.shard

    def __call__(self, name: str) -> Shard:
        return self.worker(self.shard)


def _cost(folder: Path) -> Iterator[BenchRow]:
    """Ray overhead: seconds between scenes with one worker, on Ray and without, in turns.

    Empty scenes show Ray's share bare.
    """
    from clipsweep.pipeline.run.ray_scenes import ray_cluster, run_on_ray

    write_demo(DemoConfig(train_scenes=1, val_scenes=0, key_frames=10), folder / "data")
    config = _config(
        folder, "teacher.kind=maskclip", "teacher.maskclip.model=local-dir:pipeline/demo/teacher"
    )
    works: dict[str, Callable[[], Worker]] = {
        "label a scene of 10 key frames with the demo's CLIP": partial(
            _Again, config, make_index(config)
        ),
        "commit an empty scene": _Small,
    }
    run = RunConfig(executor="ray", workers=1)
    with ray_cluster(run):
        for work, build in works.items():
            ours: list[float] = []
            peer: list[float] = []
            for turn in range(_TURNS):
                local, ray = (
                    Artifact.of(str(folder), side, {"of": [work, turn]})
                    for side in ("local", "ray")
                )
                names = [f"scene-{i}" for i in range(_SCENES)]
                times = _Times()
                worker = build()
                for name in names:
                    make_shard(local, worker, name)
                    times.tick()
                peer += times.between()
                times = _Times()
                run_on_ray(ray, names, build, run, tick=times.tick)
                ours += times.between()
            name = f"{work}, {len(ours)} times, one worker of one thread"
            bar = 0.95 if build is not _Small else None
            yield _row(
                name, "s", statistics.median(ours), "in this process", statistics.median(peer), bar
            )


class _Times:
    """Times at which the scenes of a run were done."""

    def __init__(self) -> None:
        self.done: list[float] = []

    def tick(self) -> None:
        self.done.append(time.perf_counter())

    def between(self) -> list[float]:
        """Seconds from one scene to the next, without the first.

        In the first, caches fill and a worker starts.
        """
        warm = self.done[_WARM - 1 :]
        return [after - before for before, after in pairwise(warm)]


# --- a fleet --------------------------------------------------------------------------------------


def simulate(scenes: int) -> None:
    """Simulates a fleet: the nuScenes reader of this process gives its scene under many names.

    Args:
        scenes: how many; every fifth is one to score on.
    """

    def repeated(config: DataConfig) -> Iterator[Row]:
        frames = [row.frame for row in nuscenes.index(config) if isinstance(row.frame, Frame)]
        for number in range(scenes):
            for frame in frames:
                named = replace(
                    frame, id=f"{number:06d}{frame.id[6:]}", scene=f"fleet-{number:06d}"
                )
                yield Row(named, train=number % 5 > 0, eval=number % 5 == 0)

    DATASETS["nuscenes"] = replace(DATASETS["nuscenes"], index=repeated)


def label(config: Config) -> Artifact:
    """Indexes a simulated fleet and labels what is not labelled yet, at next to no cost."""
    with mock.patch.object(pixels_stage, "PixelWorker", _Small):
        return pixels_stage.make_pixels(config, make_index(config))


def _fleet(folder: Path, scenes: int) -> Iterator[BenchRow]:
    key_frames = 40
    world = DemoConfig(
        train_scenes=1,
        val_scenes=0,
        key_frames=key_frames,
        width_px=160,
        height_px=90,
        beams=32,
        azimuths=64,
    )
    write_demo(world, folder / "data")
    first = {}
    for size in (scenes // 10, scenes):
        simulate(size)
        config = replace(_config(folder), store=str(folder / str(size)))
        start = time.perf_counter()
        label(config)
        first[size] = time.perf_counter() - start
    found = {size: _planned(folder, size) for size in first}
    of = f"{scenes} scenes, {scenes * key_frames} key frames"
    small = found[scenes // 10]
    large = found[scenes]
    yield _row(f"{of}: find all labelled", "s", large["plan_s"], "allowed", 10.0, 1.0)
    yield _row(
        f"{of}: peak memory of that, torch's 0.5 GB in it",
        "MB",
        large["peak_mb"],
        "allowed",
        1000.0,
        1.0,
    )
    yield _row(f"{of}: skip a labelled scene", "ms", large["skip_ms"], "allowed", 5.0, 1.0)
    a_tenth = "ten times a tenth of it"
    yield _row(
        f"{of}: find all labelled", "s", large["plan_s"], a_tenth, 10 * small["plan_s"], None
    )
    yield _row(
        f"{of}: index and empty shards", "s", first[scenes], a_tenth, 10 * first[scenes // 10], None
    )


def _planned(folder: Path, scenes: int) -> dict[str, float]:
    command = [sys.executable, "-m", "clipsweep.tools.benchmarks.fleet", str(folder), str(scenes)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _plan(folder: Path, scenes: int) -> dict[str, float]:
    """Cost of a resumed labelling run that finds everything done."""
    simulate(scenes)
    config = replace(_config(folder), store=str(folder / str(scenes)))
    start = time.perf_counter()
    pixels = label(config)
    plan_s = time.perf_counter() - start
    start = time.perf_counter()
    run_stage(pixels, ["_text", *pixels.shards()], _Small, config)
    skip_s = time.perf_counter() - start
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    # getrusage would report the parent's, if that is larger
    peak_mb = int(status["VmHWM"].split()[0]) / 1e3
    return {"plan_s": plan_s, "skip_ms": skip_s / scenes * 1e3, "peak_mb": peak_mb}


def _config(folder: Path, *more: str) -> Config:
    data = (
        f"data.root={folder / 'data'}",
        "data.nuscenes.version=v1.0-mini",
        "data.train=mini_train",
        "data.eval=mini_train",
    )
    teacher = (
        "teacher.kind=precomputed",
        "teacher.precomputed.size_hw=[256,480]",
        "labels.prompts=demo",
    )
    return load_config([*data, *teacher, f"store={folder}", "run.progress=false", *more])


def _row(
    name: str, unit: str, ours: float, peer_name: str, peer: float, bar: float | None
) -> BenchRow:
    return BenchRow(
        name=name, unit=unit, ours=ours, peer_name=peer_name, peer=peer, ratio=peer / ours, bar=bar
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_plan(Path(sys.argv[1]), int(sys.argv[2]))))

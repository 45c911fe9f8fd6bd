"""Benchmark of training on one GPU: steps of the demo, its input, and both together."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import torch

from clipsweep.distill.objectives import pretraining
from clipsweep.distill.student.batch import Batch
from clipsweep.distill.training.loop import Learner, train
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.stages.dataset import target_source, training_batches
from clipsweep.pipeline.stages.fit import new_student, training_frames
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.stages.points import make_points
from clipsweep.tools.benchmarks.row import Row

_STEPS = 120
LOADERS = (1, 4, 12)
"""Numbers of processes that make batches."""
_HELD = 12
"""Batches that the steps without a loader take turns with."""


def rows(device: str, demo: Sequence[str]) -> Iterator[Row]:
    """Benchmark rows of the demo's training: steps, input, both together.

    Args:
        device: cuda or cpu.
        demo: settings of the demo, beside its recipe.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [f"data.root={folder}/demo", f"store={folder}/store", "run.progress=false"]
        config = load_config(["demo", *places, *demo])
        make_demo(config, Path(config.data.root))
        index = make_index(config)
        pixels = make_pixels(config, index)
        points = make_points(config, index, pixels)
        yield from _steps(config, index, pixels, points, device)


def _steps(
    config: Config,
    index: Artifact,
    pixels: Artifact,
    points: Artifact,
    device: str,
) -> Iterator[Row]:
    frames = training_frames(index, config)
    targets = target_source(config.objectives.semantic.targets, pixels, points, config)

    def batches(processes: int, steps: int) -> Iterator[Batch]:
        run = replace(config.run, loaders=processes)
        return training_batches(frames, targets, replace(config, run=run), range(steps))

    text = torch.from_numpy(pixels.arrays("_text").get_tensor("text"))
    held = list(batches(0, _HELD))
    alone = _rate(config, text, cycle(held), device, _STEPS)
    cpu = _rate(config, text, cycle(held), "cpu", 8)
    threads = torch.get_num_threads()
    size = f"{config.model.size}, {config.train.batch_size} frames"
    name = f"demo training on {device}, {size}, batches in memory"
    yield _row(name, alone, f"native backend, CPU, {threads} threads", cpu)
    for processes in LOADERS:
        source = _arrivals(batches(processes, _STEPS))
        together = _rate(config, text, batches(processes, _STEPS), device, _STEPS)
        name = f"demo training on {device}, {size}, {processes} loader(s)"
        slower = min(source, alone)
        yield _row(name, together, "the slower of loading alone and steps alone", slower, 0.9)
        yield _row(f"{name}: share of steps alone", together, "steps alone", alone)


def _rate(
    config: Config, text: torch.Tensor, batches: Iterable[Batch], device: str, steps: int
) -> float:
    """Optimiser steps a second of the training loop; the first quarter is not counted."""
    network = new_student(config, text.shape[1]).to(device)
    network.text_head = "semantic"
    terms = pretraining(network, text.to(device), config.objectives)
    ends: list[float] = []
    learner = Learner(network, config.train)
    source = islice(batches, steps)
    train(learner, terms, source, steps, config.train, lambda _: ends.append(time.perf_counter()))
    return _per_second(ends)


def _arrivals(batches: Iterator[Batch]) -> float:
    """Batches a second of a loader alone."""
    return _per_second([time.perf_counter() for _ in batches])


def _per_second(ends: Sequence[float]) -> float:
    first = len(ends) // 4
    return (len(ends) - 1 - first) / (ends[-1] - ends[first])


def _row(name: str, ours: float, peer_name: str, peer: float, bar: float | None = None) -> Row:
    return Row(
        name=name,
        unit="steps/s",
        ours=ours,
        peer_name=peer_name,
        peer=peer,
        ratio=ours / peer,
        bar=bar,
    )

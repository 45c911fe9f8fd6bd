"""Experiments on a data set with ground truth: fusion steps, ablation, transfer between rigs.

Each gives a table. Few labels have a module of their own.

Every line is a training of its own, kept as an artifact: a stopped experiment goes on where it was.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from clipsweep.distill.metrics import OTHER, Confusion
from clipsweep.pipeline.artifacts.read import (
    geometry_layout,
    key_cloud,
    raw_rows,
    read_pixels,
    read_points,
    read_truth,
)
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.demo.make import make_demo
from clipsweep.pipeline.labels import LabelSpace, load_scoring, load_space, load_truth
from clipsweep.pipeline.reports.bootstrap import Gain
from clipsweep.pipeline.stages.finetune import make_finetuned
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.stages.points import make_points
from clipsweep.pipeline.stages.predict import make_predictions
from clipsweep.pipeline.stages.pretrain import make_pretrained
from clipsweep.pipeline.stages.score import make_scores
from clipsweep.pipeline.stages.truth import truth_reader
from clipsweep.projection.cameras import sample_pixel_labels, surest_labels
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Frame
from clipsweep.projection.fusion import label_scene, visible_pairs
from clipsweep.projection.grid import cell_keys
from clipsweep.projection.votes import vote_in_cells
from clipsweep.tools.benchmarks.results import Job

SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Line:
    """Scores of a table row: mIoU, accuracy and IoU of each class over several seeds.

    mIoU and accuracy of each seed, and the IoU of each class, mean over the seeds; then what the
    mIoU gains over other rows.
    """

    name: str
    miou: list[float]
    accuracy: list[float]
    iou: dict[str, float | None]
    note: str = ""
    gains: list[Gain] = field(default_factory=list)


def open_data(arguments: Sequence[str]) -> Config:
    """Opens the configuration of an experiment; writes the demo data set first if needed."""
    config = load_config(arguments)
    if config.make_demo:
        make_demo(config, Path(config.data.root))
    return config


# --- the steps of the method ----------------------------------------------------------------------


def steps(arguments: Sequence[str]) -> Iterator[Job]:
    """Experiment: mIoU of labels before and after fusion, of the student, and of its bounds."""

    @functools.cache
    def lifted() -> dict[str, Line]:
        return {line.name: line for line in _lifting(open_data(arguments))}

    def labels(name: str) -> Line:
        return lifted()[name]

    for name in LIFTED:
        yield Job(name, arguments, partial(labels, name))
    for name, overrides, seeds in (
        ("student, random weights", ["train.epochs=0"], SEEDS[:1]),
        ("student, annotation-free", [], SEEDS),
    ):
        yield _trained(name, [*arguments, *overrides], seeds, _pretrained)
    supervised = [*arguments, "protocol=scene@100%", "finetune.unlabelled=none"]
    yield _trained("student, all true labels", supervised, SEEDS[:1], _supervised)


LIFTED = (
    "one pixel a point, common points",
    "fused labels, common points",
    "one pixel a point, all points",
    "fused labels, all points",
)


def _lifting(config: Config) -> Iterator[Line]:
    """Label lifting: pixel labels without fusion against fused labels.

    On all points and on those that both label.
    """
    index = make_index(config)
    pixels = make_pixels(config, index)
    points = make_points(config, index, pixels)
    space = load_space(config.labels)
    counts = {
        name: Confusion.empty(len(space))
        for name in ("one", "fused", "one, common", "fused, common")
    }
    for scene in scenes_of(index, "eval"):
        for frame in scene_frames(index, config, scene):
            truth = _truth(frame, space, config)
            one = surest_pixel_labels(config, pixels, frame)
            fused = read_points(points, frame).label
            common = np.where((one != NONE) & (fused != NONE), truth, np.uint8(NONE))
            for name, true, predicted in (
                ("one", truth, one),
                ("fused", truth, fused),
                ("one, common", common, one),
                ("fused, common", common, fused),
            ):
                counts[name] += Confusion.of(true, predicted, len(space))
    share = f"{100 * counts['one, common'].points / counts['one'].points:.1f} % of the points"
    yield _counted(LIFTED[0], counts["one, common"], space.names, share)
    yield _counted(LIFTED[1], counts["fused, common"], space.names, share)
    yield _counted(LIFTED[2], counts["one"], space.names, "no label is wrong")
    yield _counted(LIFTED[3], counts["fused"], space.names, "no label is wrong")


def _truth(frame: Frame, space: LabelSpace, config: Config) -> UInt8[np.ndarray, " n"]:
    truth = read_truth(frame, space, config)
    if truth is None:
        raise _no_truth(frame)
    return truth


def _no_truth(frame: Frame) -> BadInput:
    cure = "name scenes that have some as data.eval, or score with labels.truth=boxes"
    return BadInput(frame.id, "has no labels to score against", cure)


def surest_pixel_labels(config: Config, pixels: Artifact, frame: Frame) -> UInt8[np.ndarray, " n"]:
    """Baseline without fusion: labels each raw point by its surest pixel.

    Of the pixels that show a point, the one of highest score counts.
    """
    cloud = key_cloud(frame, config)
    pairs = visible_pairs(frame, cloud.xyz, config.fusion)
    label, score = sample_pixel_labels(pairs, frame.cameras, read_pixels(pixels, frame))
    full = np.full(raw_rows(frame, config), NONE, np.uint8)
    full[cloud.source] = surest_labels(pairs, label, score, len(cloud.xyz))
    return full


def _counted(name: str, counts: Confusion, names: Sequence[str], note: str) -> Line:
    iou = [None if np.isnan(value) else float(value) for value in counts.iou()]
    return Line(name, [counts.miou()], [counts.accuracy], dict(zip(names, iou, strict=True)), note)


# --- the steps of the fusion ----------------------------------------------------------------------

_NO_LIMITS = "fusion.limits=false"
_NO_CLUSTERS = "fusion.cluster_weight=0"
_NO_Z_BUFFER = "fusion.occlusion_m=1e9"
FUSION: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("default, without limits of classes", (_NO_LIMITS,)),
    ("the same without clusters", (_NO_LIMITS, _NO_CLUSTERS)),
    ("default", ()),
    ("default, poses not aligned", ("fusion.align=false",)),
    ("default, without clusters", (_NO_CLUSTERS,)),
    ("default, clusters weigh .3", ("fusion.cluster_weight=0.3",)),
    ("default, without z-buffer", (_NO_Z_BUFFER,)),
    ("default, unclear views left out", ("fusion.unclear_weight=0",)),
    ("default, own frame alone", ("fusion.window_s=0",)),
    ("default, window 1 s", ("fusion.window_s=1",)),
    ("default, three sweeps vote", ("fusion.vote_sweeps=3",)),
    ("default, cells 0.2 m", ("fusion.cell_m=0.2",)),
    ("default, coarse cells 0.8 m", ("fusion.coarse_cell_m=0.8",)),
    ("default, coarse cells 1.6 m", ("fusion.coarse_cell_m=1.6",)),
    ("default, agreement of .7", ("fusion.min_agreement=0.7",)),
)
"""Name and settings of the fusion; all but those named so use the limits of classes."""


def fusion(arguments: Sequence[str]) -> Iterator[Job]:
    """Experiment: what each step of the label fusion gives, on labelled points of ``data.eval``."""
    table: tuple[tuple[str, tuple[str, ...], FrameLabels], ...] = (
        ("one pixel a point", (_NO_Z_BUFFER,), _surest),
        ("+ z-buffer", (), _surest),
        ("votes in 0.4 m cells", (), plain_votes),
        *((name, overrides, _fused) for name, overrides in FUSION),
    )
    for name, overrides, label in table:
        given = [*arguments, *overrides]
        yield Job(name, given, partial(_score_frames, name, given, label))


LabelledFrame = tuple[Frame, UInt8[np.ndarray, " n"]]
FrameLabels = Callable[[Config, Artifact, list[Frame]], Iterable[LabelledFrame]]
"""Labels the key sweeps of a scene, from pixel labels."""


def _surest(config: Config, pixels: Artifact, frames: list[Frame]) -> Iterator[LabelledFrame]:
    return ((frame, surest_pixel_labels(config, pixels, frame)) for frame in frames)


def _fused(config: Config, pixels: Artifact, frames: list[Frame]) -> Iterator[LabelledFrame]:
    space = load_space(config.labels)
    layout = geometry_layout(config.data)
    read = partial(read_pixels, pixels)
    for frame, labels in label_scene(frames, read, config.fusion, len(space), layout, space.limits):
        yield frame, labels.label


PLAIN_CELL_M = 0.4


def plain_votes(config: Config, pixels: Artifact, frames: list[Frame]) -> Iterator[LabelledFrame]:
    """Baseline of label fusion: majority vote of all key frames' pixels in voxels of 0.4 m."""
    classes = len(load_space(config.labels))
    read = []
    grid_from_global = frames[0].sweeps[0].global_from_lidar.inverse()
    for frame in frames:
        cloud = key_cloud(frame, config)
        pose = grid_from_global @ frame.sweeps[0].global_from_lidar
        cell = cell_keys(cloud.xyz, PLAIN_CELL_M, pose)
        pairs = visible_pairs(frame, cloud.xyz, config.fusion)
        label, score = sample_pixel_labels(pairs, frame.cameras, read_pixels(pixels, frame))
        labelled = label != NONE
        read.append((cloud, cell, cell[pairs.point[labelled]], label[labelled], score[labelled]))
    place, label, score = (np.concatenate([each[column] for each in read]) for column in (2, 3, 4))
    for frame, (cloud, cell, *_) in zip(frames, read, strict=True):
        full = np.full(raw_rows(frame, config), NONE, np.uint8)
        full[cloud.source] = vote_in_cells(place, label, score, classes, cell)
        yield frame, full


def _score_frames(name: str, arguments: Sequence[str], label: FrameLabels) -> Line:
    """Scores labels of the evaluation scenes, on the points that have one."""
    config = open_data(arguments)
    index = make_index(config)
    pixels = make_pixels(config, index)
    space = load_space(config.labels)
    truths = load_truth(config.labels)
    scoring = load_scoring(config.labels, space, truths)
    of_class = np.full(256, NONE, np.uint8)
    of_class[: len(space)] = np.where(scoring.of_class == NONE, OTHER, scoring.of_class)
    truth_of = truth_reader(config, index, truths, scoring)
    counts = Confusion.empty(len(scoring.names))
    for scene in scenes_of(index, "eval"):
        for frame, fused in label(config, pixels, scene_frames(index, config, scene)):
            truth = truth_of(frame)
            if truth is None:
                raise _no_truth(frame)
            counts += Confusion.of(truth, of_class[fused], len(scoring.names))
    seen = counts.covered()
    return _counted(name, seen, scoring.names, f"{seen.points:,} of {counts.points:,} points")


# --- the paper's ablation -------------------------------------------------------------------------

_ONE_SWEEP = ("train.sweeps=1",)
_NO_CONSISTENCY = ("objectives.spatiotemporal.weight=0",)
_NO_SELFTRAINING = ("objectives.selftraining.probability=0",)
_FUSED = ("objectives.semantic.targets=points",)
_PUBLISHED = ("objectives.semantic.kind=ce_reference", "objectives.spatiotemporal.kind=reference")
_PRINTED = ("objectives.semantic.kind=infonce_paper", "objectives.spatiotemporal.kind=paper")

ABLATION: tuple[tuple[str, tuple[str, ...], Sequence[int]], ...] = (
    ("full method", (), SEEDS),
    ("semantic term alone, one sweep", (*_ONE_SWEEP, *_NO_CONSISTENCY, *_NO_SELFTRAINING), SEEDS),
    ("without spatio-temporal term", _NO_CONSISTENCY, SEEDS[:1]),
    ("without semantic term", ("objectives.semantic.weight=0", *_NO_SELFTRAINING), SEEDS[:1]),
    ("one sweep", _ONE_SWEEP, SEEDS[:1]),
    ("five sweeps", ("train.sweeps=5",), SEEDS[:1]),
    ("three sweeps merged into one input", (*_ONE_SWEEP, "model.sweeps=3"), SEEDS[:1]),
    ("without self-training", _NO_SELFTRAINING, SEEDS[:1]),
    (
        "own predictions only after the warm-up",
        ("objectives.selftraining.probability=1",),
        SEEDS[:1],
    ),
    ("the published code's losses", _PUBLISHED, SEEDS[:1]),
    ("the paper's printed losses", _PRINTED, SEEDS[:1]),
    (
        "semantic term alone, fused labels",
        (*_ONE_SWEEP, *_NO_CONSISTENCY, *_NO_SELFTRAINING, *_FUSED),
        SEEDS,
    ),
)
"""Name, overrides, seeds.

The lines of CLIP2Scene's own ablation, and the readings of its losses.
"""


def ablation(arguments: Sequence[str]) -> Iterator[Job]:
    """Experiment: CLIP2Scene's ablation, annotation-free, after the recipe in ``arguments``."""
    for name, overrides, seeds in ABLATION:
        yield _trained(name, [*arguments, *overrides], seeds, _pretrained)


# --- another rig ----------------------------------------------------------------------------------

RIGS = {"nuScenes-like": "demo", "KITTI-like": "demo_kitti"}


def transfer(arguments: Sequence[str]) -> Iterator[Job]:
    """Experiment: domain transfer of a student between the demo's two sensor rigs.

    Annotation-free students on the held-out streets of both, over the classes that the rigs share.
    """
    for training_rig, recipe in RIGS.items():
        for scored, other in RIGS.items():
            name = f"{training_rig}, scored on {scored}"
            there = [other, *arguments, "labels.eval=shared12"]
            yield Job(name, there, partial(_transferred, name, [recipe, *arguments], there))


def _transferred(name: str, trained_on: Sequence[str], scored_on: Sequence[str]) -> Line:
    config = open_data(trained_on)
    student = make_pretrained(config).path
    there = open_data(scored_on)
    truth = "" if there.labels.space == config.labels.space else there.labels.space
    labels = dataclasses.replace(config.labels, eval=there.labels.eval, truth=truth)
    there = dataclasses.replace(there, labels=labels)
    index = make_index(there)
    predictions = make_predictions(there, index, str(student))
    return seed_mean(name, [score(there, index, predictions, str(student))])


# --- one training ---------------------------------------------------------------------------------


def _trained(
    name: str,
    arguments: Sequence[str],
    seeds: Sequence[int],
    train: Callable[[Sequence[str]], dict[str, Any]],
) -> Job:
    """Scores of trainings with several seeds, as one table row."""
    of_seed = [[*arguments, f"seed={seed}"] for seed in seeds]
    return Job(name, arguments, lambda: seed_mean(name, [train(each) for each in of_seed]))


def _pretrained(arguments: Sequence[str]) -> dict[str, Any]:
    config = open_data(arguments)
    return _scored(config, make_pretrained(config))


def _supervised(arguments: Sequence[str]) -> dict[str, Any]:
    config = open_data(arguments)
    return _scored(config, make_finetuned(config, "none"))


def _scored(config: Config, student: Artifact) -> dict[str, Any]:
    index = make_index(config)
    folder = str(student.path)
    return score(config, index, make_predictions(config, index, folder), folder)


def score(
    config: Config, index: Artifact, predicted: Artifact, student: str = ""
) -> dict[str, Any]:
    tree = json.loads(make_scores(config, index, predicted, student).shard("scores").read_text())
    assert isinstance(tree, dict)
    return tree


def seed_mean(name: str, trees: Sequence[dict[str, Any]]) -> Line:
    classes = trees[0]["classes"]
    iou = {c: [t["iou"][c] for t in trees if t["iou"][c] is not None] for c in classes}
    mean = {c: float(np.mean(values)) if values else None for c, values in iou.items()}
    return Line(name, [t["miou"] for t in trees], [t["accuracy"] for t in trees], mean)

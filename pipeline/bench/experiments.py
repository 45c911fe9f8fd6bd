"""Experiments on a data set with truth, each a table: the method's steps, the paper's ablation, shares of the labels.

Every line is a training of its own, kept as an artifact: a stopped experiment goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from distill.metrics import Confusion
from pipeline.config import Config, load_config
from pipeline.labels import load_space
from pipeline.loaders import key_cloud, read_pixels, read_points, read_truth
from pipeline.scoring import make_predictions, make_scores
from pipeline.stages import make_index, make_pixels, make_points, scene_frames, scenes_of
from pipeline.store import Artifact
from pipeline.training import make_finetuned, make_pretrained
from projection.cameras import look_up, project, visible
from projection.frames import NONE, Frame

SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table: mIoU and accuracy of each seed, and the IoU of each class, mean over the seeds."""

    name: str
    miou: list[float]
    accuracy: list[float]
    iou: dict[str, float | None]
    note: str = ""

    def __str__(self) -> str:
        """As a line of a Markdown table: the mean, and the least and the most of several seeds."""
        low, high = 100 * min(self.miou), 100 * max(self.miou)
        spread = f"{low:.1f}-{high:.1f}" if len(self.miou) > 1 else ""
        cells = [f"{100 * np.mean(self.miou):.1f}", spread, f"{100 * np.mean(self.accuracy):.1f}"]
        classes = ["-" if value is None else f"{100 * value:.0f}" for value in self.iou.values()]
        return f"| {' | '.join([self.name, *cells, *classes, self.note])} |"


def head(line: Line) -> str:
    """The head of the table that a line belongs to."""
    names = ["", "mIoU", "of the seeds", "accuracy", *line.iou, "note"]
    return f"| {' | '.join(names)} |\n|{'---|' * len(names)}"


# --- the steps of the method -----------------------------------------------------------------------------------------


def steps(arguments: Sequence[str]) -> Iterator[Line]:
    """Point labels before and after fusion, the student, and the lines below and above it."""
    config = load_config(arguments)
    index = make_index(config)
    pixels = make_pixels(config, index)
    points = make_points(config, index, pixels)
    yield from _lifting(config, index, pixels, points)
    yield _line("fused labels, all points", [_score(config, index, points)])
    for name, overrides in (("student, random weights", ("train.epochs=0",)), ("student, annotation-free", ())):
        yield _line(name, [_pretrained([*arguments, *overrides])])
    yield _line("student, all true labels", [_finetuned([*arguments, "student=none", "protocol=scene@100%"])])


def _lifting(config: Config, index: Artifact, pixels: Artifact, points: Artifact) -> Iterator[Line]:
    """One pixel for each point against the fused labels, on the points that both label and on all."""
    space = load_space(config.labels)
    counts = {name: Confusion.empty(len(space)) for name in ("one", "fused", "one, common", "fused, common")}
    for scene in scenes_of(index, "eval"):
        for frame in scene_frames(index, config, scene):
            truth = read_truth(frame, space, config)
            assert truth is not None
            one, fused = lifted(config, pixels, frame), read_points(points, frame).label
            common = np.where((one != NONE) & (fused != NONE), truth, np.uint8(NONE))
            for name, true, said in (
                ("one", truth, one),
                ("fused", truth, fused),
                ("one, common", common, one),
                ("fused, common", common, fused),
            ):
                counts[name] += Confusion.of(true, said, len(space))
    share = f"{100 * counts['one, common'].points / counts['one'].points:.1f} % of the points"
    yield _counted("one pixel a point, common points", counts["one, common"], space.names, share)
    yield _counted("fused labels, common points", counts["fused, common"], space.names, share)
    yield _counted("one pixel a point, all points", counts["one"], space.names, "no opinion is wrong")


def lifted(config: Config, pixels: Artifact, frame: Frame) -> UInt8[np.ndarray, " n"]:
    """Labels of a key sweep's raw rows without any fusion: of the pixels that show a point, the surest one's."""
    fusion, cloud = config.fusion, key_cloud(frame, config, config.data.ego_box_m)
    pairs = project(cloud.xyz, frame.sweeps[0].global_from_lidar, frame.cameras, fusion.min_depth_m)
    pairs = pairs[visible(pairs, frame.cameras, fusion.occlusion_px, fusion.occlusion_relative, fusion.occlusion_m)]
    label, score = look_up(pairs, frame.cameras, read_pixels(pixels, frame))
    order = np.argsort(np.where(label == NONE, -1, score), kind="stable")  # the surest is written last
    full = np.full(frame.sweeps[0].points.bytes // (4 * config.data.columns), NONE, np.uint8)
    full[cloud.source[pairs.point[order]]] = label[order]
    return full


def _counted(name: str, counts: Confusion, names: Sequence[str], note: str) -> Line:
    iou = [None if np.isnan(value) else float(value) for value in counts.iou()]
    return Line(name, [counts.miou()], [counts.accuracy], dict(zip(names, iou, strict=True)), note)


# --- the paper's ablation --------------------------------------------------------------------------------------------

_ONE_SWEEP = ("train.sweeps=1",)
_NO_CONSISTENCY = ("objectives.spatiotemporal.weight=0",)
_NO_SELFTRAINING = ("objectives.selftraining.probability=0",)
_PUBLISHED = (
    "objectives.semantic.kind=ce_reference",
    "objectives.spatiotemporal.kind=reference",
)
_PRINTED = ("objectives.semantic.kind=infonce_paper", "objectives.spatiotemporal.kind=paper")

ABLATION: tuple[tuple[str, tuple[str, ...], Sequence[int]], ...] = (
    ("full method", (), SEEDS),
    ("semantic term alone, one sweep", (*_ONE_SWEEP, *_NO_CONSISTENCY, *_NO_SELFTRAINING), SEEDS),
    ("without spatio-temporal term", _NO_CONSISTENCY, SEEDS),
    ("without semantic term", ("objectives.semantic.weight=0", *_NO_SELFTRAINING), SEEDS[:1]),
    ("one sweep", _ONE_SWEEP, SEEDS[:1]),
    ("five sweeps", ("train.sweeps=5",), SEEDS[:1]),
    ("three sweeps merged into one input", (*_ONE_SWEEP, "model.sweeps=3"), SEEDS[:1]),
    ("without self-training", _NO_SELFTRAINING, SEEDS),
    ("own predictions only after the warm-up", ("objectives.selftraining.probability=1",), SEEDS[:1]),
    ("the published code's losses", _PUBLISHED, SEEDS[:1]),
    ("the paper's printed losses", _PRINTED, SEEDS[:1]),
    (
        "pseudo-label training on fused points",
        (*_ONE_SWEEP, *_NO_CONSISTENCY, "objectives.semantic.targets=points"),
        SEEDS,
    ),
)
"""Name, overrides, seeds: the lines of CLIP2Scene's own ablation, and the readings of its losses."""


def ablation(arguments: Sequence[str]) -> Iterator[Line]:
    """CLIP2Scene's ablation, annotation-free, after the recipe that ``arguments`` name."""
    for name, overrides, seeds in ABLATION:
        yield _line(name, [_pretrained([*arguments, *overrides, f"seed={seed}"]) for seed in seeds])


# --- shares of the labels --------------------------------------------------------------------------------------------

SHARES = ("1", "5", "10", "25", "100")


def shares(arguments: Sequence[str]) -> Iterator[Line]:
    """Fine-tuning from the pre-trained student against training from random weights; three seeds at 1 and 100 %."""
    for share in SHARES:
        for unit in ("frame", "scene") if share != "100" else ("scene",):
            given = [*arguments, f"protocol={unit}@{share}%"]
            seeds = SEEDS if share in {"1", "100"} else SEEDS[:1]
            for source, name in (("none", "random weights"), ("", "pre-trained")):
                trees = []
                for seed in seeds:
                    student = source or str(make_pretrained(load_config([*arguments, f"seed={seed}"])).path)
                    trees.append(_finetuned([*given, *FINETUNE, f"seed={seed}", f"student={student}"]))
                yield _line(f"{unit}@{share}%, {name}", trees)


FINETUNE = ("train.sweeps=1", "objectives.selftraining.probability=0")


# --- one training ----------------------------------------------------------------------------------------------------


def _pretrained(arguments: Sequence[str]) -> dict[str, Any]:
    config = load_config(arguments)
    return _scored(config, make_pretrained(config))


def _finetuned(arguments: Sequence[str]) -> dict[str, Any]:
    config = load_config(arguments)
    return _scored(config, make_finetuned(config))


def _scored(config: Config, student: Artifact) -> dict[str, Any]:
    config = dataclasses.replace(config, student=str(student.path))
    index = make_index(config)
    return _score(config, index, make_predictions(config, index))


def _score(config: Config, index: Artifact, said: Artifact) -> dict[str, Any]:
    tree = json.loads(make_scores(config, index, said).shard("scores").read_text())
    assert isinstance(tree, dict)
    return tree


def _line(name: str, trees: Sequence[dict[str, Any]]) -> Line:
    classes = trees[0]["classes"]
    iou = {c: [t["iou"][c] for t in trees if t["iou"][c] is not None] for c in classes}
    mean = {c: float(np.mean(values)) if values else None for c, values in iou.items()}
    return Line(name, [t["miou"] for t in trees], [t["accuracy"] for t in trees], mean)

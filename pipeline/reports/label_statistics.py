"""Pseudo-label quality report: coverage, class balance, confidence, agreement, IoU.

Made before a student is trained on the labels; compared with ground truth where there is some.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8, UInt64
from matplotlib.figure import Figure

from clipsweep.distill.metrics import OTHER, Calibration, Confusion
from clipsweep.pipeline.artifacts.read import (
    key_cloud,
    read_pixels,
    read_points,
    read_truth,
    skip_or_raise,
)
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.labels import BOXES, LabelSpace, load_space, load_truth
from clipsweep.pipeline.reports.tables import mistakes_table, score_table
from clipsweep.pipeline.stages.boxes import BoxTruth, make_boxes
from clipsweep.pipeline.stages.index import scene_frames, scenes_of
from clipsweep.projection.cameras import sample_pixel_labels, surest_labels
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Cloud, Frame, Pairs, PixelLabels, PointLabels
from clipsweep.projection.fusion import visible_pairs
from clipsweep.projection.grid import cell_keys
from clipsweep.projection.pose import Pose
from clipsweep.projection.votes import vote_in_cells

_log = logging.getLogger(__name__)

_BINS = 20
_BOXES = "annotated boxes"


@dataclass(frozen=True, eq=False, slots=True)
class LabelStatistics:
    """Counts of pixel labels and point labels, and confusion matrices of their agreement.

    Agreement is counted in both directions, so that a class's IoU there is the share of those that
    either side calls by its name which both do.

    Attributes:
        pixels: cells of the teacher's grid of each class, then those without label.
        points: points of each class after fusion, then those without a label; the car's own returns
            left out.
        confidence: labelled grid cells by confidence, in equal bins over 0..1.
        cameras: labels of points that two cameras see, one camera's against the other's.
        frames: labels of points against the previous key frame's label of their voxel,
            moving objects included.
        moved: labels of the points' surest pixels (rows) against the points' fused labels
            (columns).
        pixels_truth: labels of the points' pixels against the points' true classes, in scenes of
            ``data.eval``: of label files, or of annotated boxes where no frame has labels.
        points_truth: fused labels against the same.
        pixels_sure: confidence of the pixel labels of points with a true class.
        points_sure: that of the fused labels.
    """

    pixels: Int64[np.ndarray, " c1"]
    points: Int64[np.ndarray, " c1"]
    confidence: Int64[np.ndarray, " bins"]
    cameras: Confusion
    frames: Confusion
    moved: Confusion
    pixels_truth: Confusion
    points_truth: Confusion
    pixels_sure: Calibration
    points_sure: Calibration

    def __add__(self, other: LabelStatistics) -> LabelStatistics:
        return LabelStatistics(
            *(getattr(self, name) + getattr(other, name) for name in LabelStatistics.__slots__)
        )


@dataclass(frozen=True, eq=False, slots=True)
class _Truth:
    """Ground truth of the frames of ``data.eval``: from label files, or from annotated boxes.

    Attributes:
        read: true class of every raw row of a frame's key sweep, if it has labels.
        scored: classes that can be scored; a label of another one is none of the table's.
    """

    read: Callable[[Frame], UInt8[np.ndarray, " n"] | None]
    scored: Bool[np.ndarray, " classes"]

    def of(self, frame: Frame, config: Config) -> UInt8[np.ndarray, " n"] | None:
        """Ground-truth classes of a key sweep's points, if it has any.

        With ``on_bad=skip`` a bad file gives none, and a warning.
        """
        try:
            return self.read(frame)
        except BadInput as error:
            left_out = skip_or_raise(error, frame, config).frame
            _log.warning(f"frame {left_out} goes without truth: {error}")
            return None

    def in_table(self, label: UInt8[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
        """Labels with the classes that cannot be scored as ``OTHER``."""
        table = np.full(256, NONE, np.uint8)
        table[: len(self.scored)] = np.where(self.scored, np.arange(len(self.scored)), OTHER)
        return table[label]


def truth_source(config: Config, index: Artifact) -> str:
    """Ground truth of the report: ``label files``, ``annotated boxes``, or none (empty).

    Boxes are taken with ``labels.truth=boxes``, or where no frame of ``data.eval`` has labels.

    Raises:
        BadInput: ``labels.truth`` names boxes that the data set or the label space does not have.
    """
    reader = DATASETS[config.data.kind]
    scenes = scenes_of(index, "eval")
    if config.labels.truth == BOXES:
        load_truth(config.labels)
        if reader.boxes is None:
            cure = "score against label files"
            raise BadInput("labels.truth", f"{config.data.kind} has no annotated boxes", cure)
        return _BOXES if scenes else ""
    frames = (frame for scene in scenes for frame in scene_frames(index, config, scene))
    if any(frame.labels is not None for frame in frames):
        return "label files"
    boxed = reader.boxes is not None and load_space(config.labels).boxes
    return _BOXES if boxed and scenes else ""


def _open_truth(config: Config, index: Artifact, space: LabelSpace) -> _Truth:
    """Opens the report's ground truth; none where boxes are bad and were not asked for."""
    everything = np.ones(len(space), np.bool_)
    if truth_source(config, index) != _BOXES:
        return _Truth(lambda frame: read_truth(frame, space, config), everything)
    scored = np.zeros(len(space), np.bool_)
    scored[[own for own in space.boxes.values() if own != NONE]] = True
    try:
        return _Truth(BoxTruth(config, make_boxes(config, index), space.boxes), scored)
    except BadInput as error:
        if config.labels.truth == BOXES:
            raise
        _log.warning(f"the report goes without truth: {error}")
        return _Truth(lambda frame: None, everything)


def label_statistics(
    config: Config, index: Artifact, pixels: Artifact, points: Artifact
) -> LabelStatistics:
    """Statistics of the pseudo-labels of all scenes.

    Files with true labels are opened for scenes of ``data.eval`` only.
    """
    space = load_space(config.labels)
    lost = {skip.frame for skip in points.skipped()}
    scored = scenes_of(index, "eval")
    opened = _open_truth(config, index, space)
    total = _nothing(len(space))
    for scene in scenes_of(index):
        frames = [frame for frame in scene_frames(index, config, scene) if frame.id not in lost]
        before: _LabelledPairs | None = None
        for frame in frames:
            cloud = key_cloud(frame, config)
            images = read_pixels(pixels, frame)
            fused = read_points(points, frame)
            truth = opened.of(frame, config) if scene in scored else None
            scene_from_global = frames[0].sweeps[0].global_from_lidar.inverse()
            scene_from_lidar = scene_from_global @ frame.sweeps[0].global_from_lidar
            labelled = _label_pairs(config, frame, cloud, images, scene_from_lidar)
            total += _unchecked(len(space), images, fused.label[cloud.source], labelled, before)
            if truth is not None:
                total += _checked(opened, truth, fused, labelled, cloud)
            before = labelled
    return total


def _nothing(classes: int) -> LabelStatistics:
    counts = np.zeros(classes + 1, np.int64)
    confidence = np.zeros(_BINS, np.int64)
    both = Confusion.empty(classes)
    sure = Calibration.empty()
    return LabelStatistics(counts, counts, confidence, both, both, both, both, both, sure, sure)


def _unchecked(
    classes: int,
    images: Sequence[PixelLabels],
    fused: UInt8[np.ndarray, " n"],
    labelled: _LabelledPairs,
    before: _LabelledPairs | None,
) -> LabelStatistics:
    """Label statistics of a frame without ground truth, and against the key frame before."""
    label = np.concatenate([image.label.ravel() for image in images])
    score = np.concatenate([image.score.ravel() for image in images])
    surest = surest_labels(labelled.pairs, labelled.label, labelled.score, len(fused))
    earlier = np.full_like(labelled.label, NONE)
    if before is not None:
        earlier = vote_in_cells(before.cell, before.label, before.score, classes, labelled.cell)
    return replace(
        _nothing(classes),
        pixels=_count(label, classes),
        points=_count(fused, classes),
        confidence=_by_confidence(score[label != NONE]),
        cameras=_both(*labelled.overlaps(), classes),
        frames=_both(labelled.label, earlier, classes),
        moved=Confusion.of(surest, fused, classes),
    )


def _checked(
    opened: _Truth,
    truth: UInt8[np.ndarray, " n"],
    fused: PointLabels,
    labelled: _LabelledPairs,
    cloud: Cloud,
) -> LabelStatistics:
    """Label statistics of a frame against ground truth (confusion matrices)."""
    classes = len(opened.scored)
    true = truth[cloud.source[labelled.pairs.point]]
    known = true < OTHER
    right = true == labelled.label
    both = (truth < OTHER) & (fused.label != NONE)
    return replace(
        _nothing(classes),
        pixels_truth=Confusion.of(true, opened.in_table(labelled.label), classes),
        points_truth=Confusion.of(truth, opened.in_table(fused.label), classes),
        pixels_sure=Calibration.of(labelled.score[known], right[known]),
        points_sure=Calibration.of(fused.score[both], (truth == fused.label)[both]),
    )


@dataclass(frozen=True, eq=False, slots=True)
class _LabelledPairs:
    """Point-pixel pairs with a pixel label, and the voxel key of each point."""

    pairs: Pairs
    label: UInt8[np.ndarray, " m"]
    score: Float32[np.ndarray, " m"]
    cell: UInt64[np.ndarray, " m"]

    def overlaps(self) -> tuple[UInt8[np.ndarray, " k"], UInt8[np.ndarray, " k"]]:
        """Camera overlap: labels of points that two images show, by one and by the next camera."""
        order = np.argsort(self.pairs.point, kind="stable")
        point = self.pairs.point[order]
        label = self.label[order]
        again = point[1:] == point[:-1]
        return label[:-1][again], label[1:][again]


def _label_pairs(
    config: Config,
    frame: Frame,
    cloud: Cloud,
    images: Sequence[PixelLabels],
    scene_from_lidar: Pose,
) -> _LabelledPairs:
    pairs = visible_pairs(frame, cloud.xyz, config.fusion)
    label, score = sample_pixel_labels(pairs, frame.cameras, images)
    labelled = label != NONE
    cell = cell_keys(cloud.xyz, config.fusion.cell_m, scene_from_lidar)[pairs.point[labelled]]
    return _LabelledPairs(pairs[labelled], label[labelled], score[labelled], cell)


def _both(one: UInt8[np.ndarray, " k"], two: UInt8[np.ndarray, " k"], classes: int) -> Confusion:
    """Symmetric confusion matrix of two labellings of the same points, where both have a label."""
    return Confusion.of(one, two, classes).covered() + Confusion.of(two, one, classes).covered()


def _count(label: np.ndarray, classes: int) -> Int64[np.ndarray, " c1"]:
    return np.bincount(np.minimum(label, classes).ravel(), minlength=classes + 1)


def _by_confidence(score: np.ndarray) -> Int64[np.ndarray, " bins"]:
    return np.histogram(score, _BINS, (0, 1))[0].astype(np.int64)


# --- warnings ------------------------------------------------------------------------------------

_SEEN_MIN = 100  # points of a class that cameras see, below which no warning is given
_GROUND_MOVED = 0.05
_CLASS_LOST = 0.5


def statistics_warnings(statistics: LabelStatistics, space: LabelSpace) -> list[str]:
    """Warnings about pseudo-labels that look wrong to train on.

    Fusion may well be right against the pixels (a fence that they call road). That it moves so
    many labels is worth a look at the pictures of ``tools/view.py`` in any case.
    """
    counts = statistics.moved.counts
    warnings: list[str] = []
    for own, name in enumerate(space.names):
        seen = int(counts[own].sum())
        if seen < _SEEN_MIN:
            continue
        if space.limits.ground[own]:
            objects = np.where(space.limits.ground, 0, counts[own, : len(space)])
            gone = int(objects.sum() + counts[own, -1])
            if gone > _GROUND_MOVED * seen:
                to = _largest(objects, int(counts[own, -1]), seen, space)
                warnings.append(
                    f"{name}: {_percent(gone, seen)} of the points of such pixels are not ground "
                    f"after fusion ({to})"
                )
        elif counts[:, own].sum() < _CLASS_LOST * seen:
            left = _percent(int(counts[:, own].sum()), seen)
            others = counts[own, : len(space)].copy()
            others[own] = 0
            to = _largest(others, int(counts[own, -1]), seen, space)
            warnings.append(
                f"{name}: fusion leaves {left} as many of the points that cameras see ({to})"
            )
    return warnings


def _largest(counts: Int64[np.ndarray, " c"], none: int, seen: int, space: LabelSpace) -> str:
    """The three most frequent labels, with their shares."""
    most = [(int(counts[i]), space.names[i]) for i in np.argsort(-counts, kind="stable")]
    most = sorted([*most, (none, "no label")], key=lambda each: -each[0])[:3]
    return ", ".join(f"{_percent(count, seen)} {name}" for count, name in most if count)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


# --- table and picture ----------------------------------------------------------------------------

_CALIBRATION = "calibration error"


def statistics_table(statistics: LabelStatistics, space: LabelSpace, title: str) -> str:
    """Table of label statistics: share, agreement and IoU of each class, then totals."""
    shares = {"pixels": statistics.pixels, "points": statistics.points}
    columns: dict[str, Mapping[str, float | None]] = {
        name: {
            **_by_class_name(space, counts[:-1] / max(1, counts[:-1].sum())),
            "labelled": _labelled(counts),
        }
        for name, counts in shares.items()
    }
    for name, counts in (("cameras", statistics.cameras), ("frames", statistics.frames)):
        columns[name] = {**_by_class_name(space, counts.iou()), "agreeing": counts.accuracy}
    checked = {
        "pixel IoU": (statistics.pixels_truth, statistics.pixels_sure),
        "point IoU": (statistics.points_truth, statistics.points_sure),
    }
    checked = {name: each for name, each in checked.items() if each[0].points}
    for name, (counts, sure) in checked.items():
        scores = {"mean": counts.miou(), "accuracy": counts.accuracy, _CALIBRATION: sure.error}
        columns[name] = {**_by_class_name(space, counts.iou()), **scores}
    totals = ("mean", "accuracy", _CALIBRATION) if checked else ()
    table = score_table(title, columns, [*space.names, "labelled", "agreeing", *totals])
    stages = {name.removesuffix(" IoU"): counts for name, (counts, _) in checked.items()}
    return "\n".join([table, *([mistakes_table(stages, space.names)] if stages else [])])


def _by_class_name(space: LabelSpace, values: np.ndarray) -> dict[str, float]:
    return dict(zip(space.names, values.tolist(), strict=True))


def _labelled(counts: Int64[np.ndarray, " c1"]) -> float:
    return float(counts[:-1].sum() / max(1, counts.sum()))


def draw_statistics(statistics: LabelStatistics, space: LabelSpace, title: str) -> Figure:
    """Plots label statistics: class balance, agreement, IoU, confidence calibration."""
    figure = Figure(figsize=(16, 10), layout="constrained", dpi=110)
    figure.suptitle(title)
    axes: Any = figure.subplots(2, 2)
    (balance, confidence), (agreement, truth) = axes
    counts = {"pixels": statistics.pixels, "fused labels": statistics.points}
    shares = {
        f"{name}, {100 * _labelled(n):.1f} % labelled": n[:-1] / max(1, n[:-1].sum())
        for name, n in counts.items()
    }
    _bars(balance, space, shares, "share of the labels (logarithmic)")
    balance.set_yscale("log")
    balance.margins(y=0.2)
    both = {
        "two cameras, same point": statistics.cameras,
        "key frame before, same cell": statistics.frames,
    }
    agreeing = {
        f"{name}, {100 * c.accuracy:.1f} % agree": c.iou() for name, c in both.items() if c.points
    }
    _bars(agreement, space, agreeing, "agreement: IoU of two labels of the same place")
    against = {"pixel labels": statistics.pixels_truth, "fused labels": statistics.points_truth}
    right = {
        f"{name}, mIoU {100 * c.miou():.1f}": c.iou() for name, c in against.items() if c.points
    }
    _bars(truth, space, right, "IoU with truth, scenes of data.eval" if right else "no truth")
    for axis in (agreement, truth):
        axis.set_ylim(0, 1.15)
    _draw_confidence(confidence, statistics)
    return figure


def _bars(axis: Any, space: LabelSpace, series: Mapping[str, np.ndarray], title: str) -> None:
    """Grouped bar chart in the classes' colours, the second series hatched."""
    colors = space.colors / 255.0
    place = np.arange(len(space))
    for number, (name, values) in enumerate(series.items()):
        hatch = "" if number == 0 else "///"
        axis.bar(
            place + 0.4 * number - 0.2,
            values,
            0.38,
            color=colors,
            edgecolor="0.2",
            hatch=hatch,
            label=name,
        )
    axis.set_xticks(place, space.names, rotation=40, ha="right", fontsize=8)
    axis.set_title(title, fontsize=10)
    axis.grid(axis="y", alpha=0.3)
    if series:
        axis.legend(fontsize=8, loc="upper center", ncols=2)


def _draw_confidence(axis: Any, statistics: LabelStatistics) -> None:
    edges = np.linspace(0, 1, _BINS + 1)
    axis.stairs(
        statistics.confidence / max(1, statistics.confidence.sum()),
        edges,
        fill=True,
        color="0.75",
        label="pixels",
    )
    curves = {"pixel labels": statistics.pixels_sure, "fused labels": statistics.points_sure}
    for (name, sure), marker in zip(curves.items(), "os", strict=True):
        shown = sure.count >= max(20, sure.count.sum() // 1000)
        if shown.any():
            share = sure.right[shown] / sure.count[shown]
            text = f"accuracy of {name}, calibration error {100 * sure.error:.1f} %"
            axis.plot(sure.confidence[shown] / sure.count[shown], share, f"{marker}-", label=text)
    axis.plot([0, 1], [0, 1], ":", color="0.5", label="accuracy = confidence")
    axis.set_title("calibration of labels", fontsize=10)
    axis.set_xlabel("confidence", fontsize=8)
    axis.set_xlim(0, 1)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)

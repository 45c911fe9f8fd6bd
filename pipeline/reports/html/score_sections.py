"""Sections on scores: where a run fails, IoU by class, confusion matrix, range and density."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.reports.html.breakdown import DENSITIES, RANGES_M, VOXEL_M, Breakdown
from clipsweep.pipeline.reports.html.charts import (
    bin_gain_map,
    bin_map,
    class_bars,
    confusion_map,
)
from clipsweep.pipeline.reports.html.page import Block, Link, Section, chart
from clipsweep.pipeline.reports.html.scored_run import ScoredRun, gains, interval, percent
from clipsweep.pipeline.reports.label_statistics import LabelStatistics
from clipsweep.projection.frames import Frame

_SHARE_MIN = 0.02
"""Share of a class's points that a range needs to be called its worst."""


def score_sections(
    config: Config,
    ours: ScoredRun,
    other: ScoredRun | None,
    frames: Sequence[Frame],
    taught: LabelStatistics | None,
) -> list[Section]:
    """Sections on the scores of a run.

    Args:
        config: its label space.
        ours: the run.
        other: a run that it is compared with.
        frames: frames that the page shows.
        taught: statistics of the labels that a student learned from.
    """
    scores = [_class_block(ours, other)]
    if other:
        scores.append(_gain_block(ours, other))
    if taught and ours.run.student and ours.parts.names == load_space(config.labels).names:
        scores += _step_blocks(ours, taught)
    confusion = Block(
        text="Rows are true classes, in % of their points. Where a row is dark off the diagonal, "
        "that class is taken for another.",
        chart=chart(confusion_map(ours.parts.total, ours.parts.names)),
    )
    return [
        Section("worst", "Where it fails", list(_worst_blocks(ours, frames))),
        Section("scores", "Scores by class", scores),
        Section("confusion", "Confusion matrix", [confusion]),
        Section("range", "Range and density", list(_bin_blocks(ours, other))),
    ]


# --- where it fails -------------------------------------------------------------------------------


def _worst_blocks(ours: ScoredRun, frames: Sequence[Frame]) -> Iterator[Block]:
    """The worst classes in words: what they are taken for, and where."""
    shown = {frame.id for frame in frames}
    for row in ours.worst_classes():
        around = interval(ours.intervals[row])
        text = f"IoU {percent(ours.iou[row])}" + (f" ({around})." if around else ".")
        text += _taken_for(ours, row) + _worst_range(ours.parts, row)
        frame = ours.parts.worst_frame(row)
        links = [Link(f"frame-{frame}", f"See frame {frame}.")] if frame in shown else []
        yield Block(heading=ours.parts.names[row], text=text, links=links)


def _taken_for(ours: ScoredRun, row: int) -> str:
    columns = [*ours.parts.names, "another class", "nothing"]
    mistakes = ours.parts.total.mistakes()[row]
    most = ", ".join(f"{100 * share:.0f} % {columns[column]}" for column, share in mistakes)
    return f" Its points are taken for: {most}." if most else ""


def _worst_range(parts: Breakdown, row: int) -> str:
    """Range in which a class's IoU is lowest, among those with a fair share of its points."""
    points = np.array([each.counts[row].sum() for each in parts.ranges])
    iou = np.array([each.iou()[row] for each in parts.ranges])
    iou[points < _SHARE_MIN * max(1, points.sum())] = np.nan
    if np.isnan(iou).all():
        return ""
    worst = int(np.nanargmin(iou))
    return f" It is worst at {_range_names()[worst]}: IoU {percent(iou[worst])}."


# --- scores by class ------------------------------------------------------------------------------


def _class_block(ours: ScoredRun, other: ScoredRun | None) -> Block:
    runs = [run for run in (ours, other) if run]
    series = {each.run.name: each.iou[:-1] for each in runs}
    intervals = {each.run.name: each.intervals[:-1] for each in runs}
    text = "IoU of each class over all points"
    text += (
        ", with 95 % intervals (bootstrap over scenes)." if len(ours.parts.scenes()) > 1 else "."
    )
    return Block(text=text, chart=chart(class_bars(series, ours.parts.names, intervals)))


def _gain_block(ours: ScoredRun, other: ScoredRun) -> Block:
    gain = gains(ours, other)[:-1]
    difference = f"{ours.run.name} minus {other.run.name}"
    figure = class_bars(
        {difference: gain[:, 0]},
        ours.parts.names,
        {difference: gain[:, 1:]},
        "gain in IoU, points",
    )
    return Block(heading="What got better", anchor="gains", chart=chart(figure))


def _step_blocks(ours: ScoredRun, taught: LabelStatistics) -> Iterator[Block]:
    """IoU of the labels of each step, from pixels to the student."""
    steps = {"pixel labels": taught.pixels_truth, "fused pseudo-labels": taught.points_truth}
    series = {name: counts.iou() for name, counts in steps.items() if counts.points}
    if series:
        bars = {"student": ours.iou[:-1], **series}
        yield Block(
            heading="From pixels to student",
            anchor="steps",
            text="IoU of each step's labels with the truth. Pixel labels count only points that a "
            "camera sees; points without a label count as wrong in the others.",
            soft=True,
            chart=chart(class_bars(bars, ours.parts.names)),
        )


# --- range and density ----------------------------------------------------------------------------


def _bin_blocks(ours: ScoredRun, other: ScoredRun | None) -> Iterator[Block]:
    """IoU against range and against points a voxel."""
    kinds = {
        "IoU by distance to the LiDAR": ("ranges", _range_names()),
        f"IoU by points in a voxel of {VOXEL_M:g} m": ("densities", _density_names()),
    }
    for heading, (kind, labels) in kinds.items():
        bins = getattr(ours.parts, kind)
        figure = bin_map(bins, labels, ours.parts.names)
        yield Block(heading=heading, chart=chart(figure))
        if other:
            figure = bin_gain_map(bins, getattr(other.parts, kind), labels, ours.parts.names)
            yield Block(heading=f"{heading}: gain over {other.run.name}", chart=chart(figure))


def _range_names() -> list[str]:
    bounded = [f"{low:g} to {high:g} m" for low, high in pairwise(RANGES_M)]
    return [*bounded, f"over {RANGES_M[-1]:g} m"]


def _density_names() -> list[str]:
    bounded = [
        str(low) if high == low + 1 else f"{low} to {high - 1}" for low, high in pairwise(DENSITIES)
    ]
    return [*bounded, f"{DENSITIES[-1]} or more"]

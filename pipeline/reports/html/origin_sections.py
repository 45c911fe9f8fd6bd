"""Sections on how a run was made: its labels, training, time, disk, what was left out, settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml
from jaxtyping import Float, Int64

from clipsweep.pipeline.artifacts.inventory import Entry, size_text
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.reports.html.charts import class_bars, training_curves
from clipsweep.pipeline.reports.html.page import Block, Section, Table, chart
from clipsweep.pipeline.reports.html.scored_run import Run, ScoredRun, percent
from clipsweep.pipeline.reports.label_statistics import LabelStatistics, label_statistics
from clipsweep.pipeline.stages.index import find_parts, scenes_of
from clipsweep.projection.errors import BadInput

_REASONS = 20
"""Reasons for leaving frames out that a page lists."""


def taught_labels(config: Config, index: Artifact, run: Run) -> LabelStatistics | BadInput:
    """Statistics of the pseudo-labels that a run learned from, or why there are none."""
    points = run.manifest["inputs"].get("points", "") if run.student else run.labels.id
    try:
        fused = Artifact.at(f"{config.store}/{points}", "points")
        pixels = fused.manifest()["inputs"].get("pixels", "")
        found = [
            find_parts(Artifact.at(f"{config.store}/{name}", stage), index, scenes_of(index))
            for name, stage in ((pixels, "pixels"), (points, "points"))
        ]
    except BadInput as error:
        return error
    return label_statistics(config, index, *found)


def origin_sections(
    config: Config,
    ours: ScoredRun,
    taught: LabelStatistics | BadInput,
    entries: Sequence[Entry],
) -> list[Section]:
    """Sections on how a run was made.

    Args:
        config: data and label space.
        ours: the run.
        taught: statistics of the labels that it learned from, or why there are none.
        entries: artifacts that it was made from.
    """
    return [
        Section("labels", "Labels", list(_label_blocks(config, ours, taught))),
        Section("training", "Training", list(_training_blocks(ours.run))),
        Section("stages", "Time and disk", [_stage_block(entries)]),
        Section("left-out", "Left out", [_left_out_block(ours, entries)]),
        Section("configuration", "Configuration", _configuration_blocks(config, ours.run)),
    ]


# --- labels ---------------------------------------------------------------------------------------


def _label_blocks(
    config: Config, ours: ScoredRun, taught: LabelStatistics | BadInput
) -> Iterator[Block]:
    """Class shares of the labels at each stage, and how well they agree with one another."""
    names = load_space(config.labels).names
    series: dict[str, Float[np.ndarray, " c"]] = {}
    if isinstance(taught, BadInput):
        yield Block(text=f"Labels that it learned from are not shown: {taught}", soft=True)
    else:
        series["pixels"] = _shares(taught.pixels[:-1])
        series["fused points"] = _shares(taught.points[:-1])
    if ours.parts.frames and ours.parts.names == names:
        series["truth of the scored points"] = _shares(ours.parts.total.counts.sum(1))
    if series:
        figure = class_bars(series, names, unit="share %, logarithmic").update_xaxes(type="log")
        yield Block(text="Share of each class among the labels.", chart=chart(figure))
    if not isinstance(taught, BadInput):
        yield Block(table=Table(("pseudo-labels", ""), _agreement(taught), (1,)))


def _agreement(taught: LabelStatistics) -> list[tuple[str, str]]:
    return [
        ("labelled grid cells of the images", percent(_labelled(taught.pixels))),
        ("labelled points", percent(_labelled(taught.points))),
        ("points that two cameras see: same label", percent(taught.cameras.accuracy)),
        ("same cell, key frame before: same label", percent(taught.frames.accuracy)),
    ]


def _shares(counts: Int64[np.ndarray, " c"]) -> Float[np.ndarray, " c"]:
    shares = counts / max(1, counts.sum())
    return np.where(shares > 0, shares, np.nan)


def _labelled(counts: Int64[np.ndarray, " c1"]) -> float:
    return float(counts[:-1].sum() / max(1, counts.sum()))


# --- training, stages, settings -------------------------------------------------------------------


def _training_blocks(run: Run) -> Iterator[Block]:
    log = Path(run.student) / "metrics.jsonl"
    if not run.student or not log.is_file():
        return
    try:
        steps = [json.loads(line) for line in log.read_text().splitlines()]
        figure = training_curves(steps)
    except (ValueError, KeyError, TypeError, IndexError):
        yield Block(text=f"{log.name} of the student cannot be read.", soft=True)
        return
    bad = run.manifest.get("bad_steps", 0)
    text = f"{len(steps)} optimiser steps"
    text += f", {bad} left out because loss or gradient was not finite" if bad else ""
    yield Block(text=f"{text}.", chart=chart(figure))


def _stage_block(entries: Sequence[Entry]) -> Block:
    rows = [
        (
            entry.what,
            entry.id,
            "-" if entry.wall_s is None else _time_text(entry.wall_s),
            size_text(entry.bytes),
            entry.state,
        )
        for entry in entries
    ]
    total = size_text(sum(entry.bytes for entry in entries))
    text = f"{total} in all. The time of a stage is that of the run that finished it."
    return Block(text=text, table=Table(("what", "artifact", "time", "disk", ""), rows, (2, 3)))


def _time_text(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _left_out_block(ours: ScoredRun, entries: Sequence[Entry]) -> Block:
    """Frames and sweeps that were left out, by reason; of the scored split and of all stages."""
    reasons = Counter(row.reason for entry in entries for row in Artifact(entry.path).skipped())
    scored = Counter(skip.reason for skip in ours.skipped)
    both = reasons | scored
    if not both:
        return Block(text="Nothing was left out.")
    rows = [(str(count), reason) for reason, count in both.most_common(_REASONS)]
    text = f"{sum(both.values())} frame(s) or older sweep(s), for {len(both)} reason(s)"
    text += ":" if len(both) <= len(rows) else f"; the {len(rows)} most frequent:"
    return Block(text=text, table=Table(("count", "reason"), rows, (0,)))


def _configuration_blocks(config: Config, run: Run) -> list[Block]:
    manifest = run.manifest
    versions = [(name, text) for name, text in manifest["versions"].items()]
    settings = yaml.safe_dump(manifest["config"], sort_keys=False, allow_unicode=True)
    return [
        Block(text=f"Scored on {', '.join(config.data.eval)} of {config.data.root}."),
        Block(heading="Versions", table=Table(("package", "version"), versions)),
        Block(heading=f"Settings of {run.name}", lines=settings),
    ]

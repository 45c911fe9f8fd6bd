"""Report of the labels of a data set: scores, mistakes, frames, training, time and disk."""

from __future__ import annotations

from pathlib import Path

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.inventory import inventory, lineage
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.reports.html.frame_section import frame_blocks, frames_to_show
from clipsweep.pipeline.reports.html.origin_sections import origin_sections, taught_labels
from clipsweep.pipeline.reports.html.page import Page, Section, Tile
from clipsweep.pipeline.reports.html.score_sections import score_sections
from clipsweep.pipeline.reports.html.scored_run import (
    Run,
    ScoredRun,
    gains,
    interval,
    percent,
    score_run,
)
from clipsweep.projection.errors import BadInput


def run_report(
    config: Config, index: Artifact, run: Run, against: Run | None
) -> tuple[Page, list[Skip]]:
    """Report of the labels of ``data.eval``, with scores where the data has ground truth.

    Args:
        config: data, label space, store.
        index: the frames.
        run: the labels.
        against: another run, whose labels of the same frames are compared.

    Returns:
        The page, and the frames that were left out.

    Raises:
        BadInput: a frame or its truth cannot be used and ``on_bad=fail``.
    """
    ours = score_run(config, index, run)
    other = score_run(config, index, against) if against else None
    taught = taught_labels(config, index, run)
    known = None if isinstance(taught, BadInput) else taught
    frames = frames_to_show(config, index, ours)
    scores = score_sections(config, ours, other, frames, known) if ours.parts.frames else []
    shown = Section("frames", "Frames", list(frame_blocks(config, ours, other, frames)))
    entries = lineage(inventory(config.store), [run.name, run.labels.id])
    origin = origin_sections(config, ours, taught, entries)
    split = ", ".join(config.data.eval)
    subtitle = f"{run.kind}; {split} of {Path(config.data.root).name}"
    subtitle += f"; compared with {against.name}" if against else ""
    page = Page(f"clipsweep: {run.name}", subtitle, _tiles(ours, other), [*scores, shown, *origin])
    return page, ours.skipped


def _tiles(ours: ScoredRun, other: ScoredRun | None) -> list[Tile]:
    parts = ours.parts
    if not parts.frames:
        return [Tile("ground truth", "none", "nothing is scored")]
    around = interval(ours.intervals[-1])
    note = f"{around}, 95 % interval over scenes" if around else "one scene: no interval"
    tiles = [
        Tile("mIoU", percent(ours.iou[-1]), note),
        Tile("accuracy", percent(parts.total.accuracy), f"of {parts.total.points:,} points"),
        Tile("key frames", str(len(parts.frames)), f"of {len(parts.scenes())} scenes"),
    ]
    if other:
        gain = gains(ours, other)[-1]
        note = f"{interval(gain[1:], '+.1f')}, against {other.run.name}"
        tiles.insert(1, Tile("gain in mIoU", f"{100 * gain[0]:+.1f}", note))
    return tiles

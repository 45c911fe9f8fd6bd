"""Frames of a report: the ones that show most, as pictures and in 3D."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from clipsweep.pipeline.artifacts.read import key_cloud
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import LabelSpace, load_space
from clipsweep.pipeline.reports.html.charts import (
    Coloring,
    class_coloring,
    cloud_view,
    error_coloring,
)
from clipsweep.pipeline.reports.html.page import Block, chart, picture
from clipsweep.pipeline.reports.html.scored_run import ScoredRun, percent
from clipsweep.pipeline.reports.views import draw_key_frame, true_classes
from clipsweep.pipeline.stages.labelled import labelled_frames, read_labels
from clipsweep.projection.frames import Frame

_FRAMES = 6


def frames_to_show(config: Config, index: Artifact, ours: ScoredRun) -> list[Frame]:
    """Frames that show most: those of the worst classes, the worst ones, the best one.

    Without truth they are spread over the split.
    """
    parts = ours.parts
    if not parts.frames:
        frames = [frame for frame, _ in labelled_frames(config, index, ours.run.labels)]
        return frames[:: -(-len(frames) // _FRAMES)]
    by_accuracy = sorted(parts.frames, key=lambda frame: parts.frames[frame].accuracy)
    of_scene = {parts.scene[frame]: frame for frame in reversed(by_accuracy)}
    worst = sorted(of_scene.values(), key=lambda frame: parts.frames[frame].accuracy)
    wanted = [parts.worst_frame(row) for row in ours.worst_classes()] + worst
    wanted = [*dict.fromkeys([*wanted[: _FRAMES - 1], by_accuracy[-1]])]
    found = labelled_frames(config, index, ours.run.labels)
    by_id = {frame.id: frame for frame, _ in found if frame.id in wanted}
    return [by_id[frame] for frame in wanted]


def frame_blocks(
    config: Config, ours: ScoredRun, other: ScoredRun | None, frames: Sequence[Frame]
) -> Iterator[Block]:
    """Pictures and 3D views of frames."""
    space = load_space(config.labels)
    for frame in frames:
        label = read_labels(ours.run.labels, frame)
        views = _views(config, frame, label, space)
        if other:
            theirs = read_labels(other.run.labels, frame)
            views["other run"] = class_coloring(theirs, space.names, space.colors)
        cloud = key_cloud(frame, config)
        shown = {name: view.take(cloud.source) for name, view in views.items()}
        counts = ours.parts.frames.get(frame.id)
        note = f"Scene {frame.scene}"
        note += f", {percent(counts.accuracy)} of the points are right" if counts else ""
        kind = "predictions" if ours.run.student else "pseudo-labels"
        yield Block(
            heading=f"Frame {frame.id}",
            anchor=f"frame-{frame.id}",
            text=note,
            picture=picture(draw_key_frame(config, frame, label, kind)),
            chart=chart(cloud_view(cloud.xyz, shown)),
        )


def _views(
    config: Config, frame: Frame, label: UInt8[np.ndarray, " n"], space: LabelSpace
) -> dict[str, Coloring]:
    """Ways to colour a frame's points: labels, and truth and errors where there is truth."""
    views = {"labels": class_coloring(label, space.names, space.colors)}
    truth = true_classes(config, frame, space)
    if truth is not None:
        views["truth"] = class_coloring(truth, space.names, space.colors)
        views["errors"] = error_coloring(label, truth)
    return views

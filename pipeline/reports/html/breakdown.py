"""Where labels are wrong: confusion matrices by key frame, by range and by point density."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64

from clipsweep.distill.metrics import Confusion
from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import key_cloud
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_scoring, load_space, load_truth
from clipsweep.pipeline.stages.truth import ScoredFrame, scored_frames
from clipsweep.projection.frames import Cloud
from clipsweep.projection.grid import cell_keys

RANGES_M = (0.0, 10.0, 20.0, 30.0, 40.0, 60.0)
"""Lower bounds of the bins of horizontal distance to the LiDAR."""
DENSITIES = (1, 2, 4, 8, 16, 32)
"""Lower bounds of the bins of points a voxel."""
VOXEL_M = 0.4
"""Edge of the voxels in which points are counted."""


@dataclass(frozen=True, eq=False, slots=True)
class Breakdown:
    """Confusion matrices of the scored key frames, by frame and by bins of their points.

    Attributes:
        names: classes of the table of scores.
        scene: of each frame, by its id.
        frames: confusion matrix of each frame, by its id.
        ranges: of the points in each of ``RANGES_M``.
        densities: of the points in each of ``DENSITIES``, key sweep alone.
    """

    names: tuple[str, ...]
    scene: dict[str, str]
    frames: dict[str, Confusion]
    ranges: list[Confusion]
    densities: list[Confusion]

    @property
    def total(self) -> Confusion:
        """Confusion matrix of all scored points."""
        return sum(self.frames.values(), Confusion.empty(len(self.names)))

    def scenes(self) -> dict[str, Confusion]:
        """Confusion matrix of each scene."""
        found: dict[str, Confusion] = {}
        for frame, counts in self.frames.items():
            scene = self.scene[frame]
            found[scene] = found.get(scene, Confusion.empty(len(self.names))) + counts
        return found

    def worst_frame(self, row: int) -> str:
        """Frame with the most wrong points of a class: missed ones and false ones."""
        return max(self.frames, key=lambda frame: _wrong(self.frames[frame], row))


def _wrong(counts: Confusion, row: int) -> int:
    """Points of a class that are missed, and points that are falsely called so."""
    predicted = counts.counts[:, row].sum() + counts.background[row]
    right = counts.counts[row, row]
    return int(counts.counts[row].sum() + predicted - 2 * right)


def break_down(config: Config, index: Artifact, labels: Artifact, skipped: list[Skip]) -> Breakdown:
    """Scores labels by key frame, range and density; nothing is scored where there is no truth.

    The car's own returns count in the frames and are in no bin.

    Args:
        config: labels, and what to do with bad frames.
        index: the frames.
        labels: predictions or pseudo-labels of ``data.eval``.
        skipped: gets a record of each frame whose truth cannot be read.

    Raises:
        BadInput: as ``scored_frames``.
    """
    names = load_scoring(config.labels, load_space(config.labels), load_truth(config.labels)).names
    nothing = Confusion.empty(len(names))
    found = Breakdown(names, {}, {}, [nothing for _ in RANGES_M], [nothing for _ in DENSITIES])
    for scored in scored_frames(config, index, labels, skipped):
        cloud = key_cloud(scored.frame, config)
        found.scene[scored.frame.id] = scored.frame.scene
        found.frames[scored.frame.id] = Confusion.of(scored.truth, scored.predicted, len(names))
        range_m = np.hypot(cloud.xyz[:, 0], cloud.xyz[:, 1])
        _add(found.ranges, scored, cloud, _bin(range_m, RANGES_M))
        _add(found.densities, scored, cloud, _bin(points_a_voxel(cloud), DENSITIES))
    return found


def points_a_voxel(cloud: Cloud) -> Int64[np.ndarray, " n"]:
    """Number of points of the cloud in the voxel of each point, itself included."""
    keys = cell_keys(cloud.xyz, VOXEL_M)
    _, voxel, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[voxel]


def _bin(
    values: Float[np.ndarray, " n"] | Int64[np.ndarray, " n"],
    lower: Sequence[float] | Sequence[int] | Sequence[int],
) -> Int64[np.ndarray, " n"]:
    """Bin of each value; the last bin is open."""
    return np.searchsorted(lower, values, side="right") - 1


def _add(
    bins: list[Confusion], scored: ScoredFrame, cloud: Cloud, place: Int64[np.ndarray, " n"]
) -> None:
    """Adds the points of a frame to the confusion matrices of their bins."""
    truth = scored.truth[cloud.source]
    predicted = scored.predicted[cloud.source]
    for number in range(len(bins)):
        here = place == number
        bins[number] += Confusion.of(truth[here], predicted[here], len(bins[number].counts))

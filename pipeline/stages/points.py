"""Points stage: multi-sweep fusion of pixel labels into pseudo-labels of LiDAR points."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import geometry_layout, read_pixels, record_older_sweep
from clipsweep.pipeline.artifacts.store import Artifact, Part, digest_of
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.run.scenes import Shard, run_stage
from clipsweep.pipeline.stages.index import scene_frames, split_scenes
from clipsweep.pipeline.stages.poses import make_poses, read_poses
from clipsweep.projection.frames import Frame, PointLabels
from clipsweep.projection.fusion import SweepReader, label_frames

NAMED_BY = ("data.columns", "data.ego_box_m", "data.bad_share", "fusion", "on_bad")
"""Settings that decide the labels, beside the label space and the pixels."""

FRAMES = 64
"""Key frames of a shard, which share a map of the ground."""


class FuseWorker:
    """Worker that fuses the pixel labels of a scene into pseudo-labels of some key sweeps."""

    def __init__(
        self,
        config: Config,
        index: Artifact,
        pixels: Artifact,
        poses: Artifact,
        parts: Sequence[Part],
    ) -> None:
        self.config = config
        self.index = index
        self.pixels = pixels
        self.poses = poses
        self.parts = {part.shard: part for part in parts}
        self.space = load_space(config.labels)
        self.lost = {skip.frame: skip for skip in (*pixels.skipped(), *poses.skipped())}

    def __call__(self, name: str) -> Shard:
        """Fused pseudo-labels of the key sweeps of a shard."""
        part = self.parts[name]
        skipped = [self.lost[frame] for frame in part.frames if frame in self.lost]
        frames = scene_frames(self.index, self.config, part.scene)
        frames = [frame for frame in frames if frame.id not in self.lost]
        ids = set(part.frames)
        of_part = [row for row, frame in enumerate(frames) if frame.id in ids]
        if not of_part:
            return Shard({}, skipped, {"points": 0, "labelled": 0}, part.facts())
        arrays: dict[str, np.ndarray] = {}
        wanted = range(of_part[0], of_part[-1] + 1)
        for frame, fused in self._fuse(part.scene, frames, wanted, skipped):
            for field in ("label", "score", "agreement"):
                arrays[f"{frame.id}/{field}"] = getattr(fused, field)
        return Shard(arrays, skipped, count_labels(arrays, self.space.names), part.facts())

    def _fuse(
        self, scene: str, frames: list[Frame], wanted: range, skipped: list[Skip]
    ) -> Iterator[tuple[Frame, PointLabels]]:
        """Fused pseudo-labels of some frames of a scene; adds bad older sweeps to ``skipped``."""
        poses = read_poses(self.poses, scene)
        assert poses is not None  # as there are frames
        row_of = {frame: row for row, frame in enumerate(poses.frames)}
        rows = [row_of[frame.id] for frame in frames]
        alignment = replace(
            poses.alignment,
            corrections=tuple(poses.alignment.corrections[row] for row in rows),
            fits=tuple(poses.alignment.fits[row] for row in rows),
        )
        on_bad_sweep = (
            partial(record_older_sweep, skipped, scene) if self.config.on_bad == "skip" else None
        )
        return label_frames(
            frames,
            wanted,
            alignment,
            SweepReader(geometry_layout(self.config.data), on_bad_sweep),
            partial(read_pixels, self.pixels),
            self.config.fusion,
            len(self.space),
            self.space.limits,
            poses.grid_from_global,
        )


def count_labels(arrays: Mapping[str, np.ndarray], names: Sequence[str]) -> dict[str, int]:
    """Counts points, labelled ones, and those of each class in a shard of point labels."""
    labels = [array for name, array in arrays.items() if name.endswith("/label")]
    count = sum((np.bincount(label, minlength=256) for label in labels), np.zeros(256, np.int64))
    of_class = count[: len(names)]
    return {
        "points": int(count.sum()),
        "labelled": int(of_class.sum()),
        **{f"class {name}": int(each) for name, each in zip(names, of_class, strict=True)},
    }


def class_shares(points: Artifact) -> dict[str, float]:
    """Share of each class among the labelled points of the shards that a run uses."""
    counts: dict[str, int] = {}
    for part in points.parts:
        for name, count in points.facts(part.shard)["counts"].items():
            counts[name] = counts.get(name, 0) + count
    labelled = max(1, counts.get("labelled", 0))
    prefix = "class "
    return {
        name.removeprefix(prefix): count / labelled
        for name, count in counts.items()
        if name.startswith(prefix)
    }


def make_points(config: Config, index: Artifact, pixels: Artifact) -> Artifact:
    """Fuses pixel labels over sweeps into pseudo-labels, scene by scene: ``points-<id>/``."""
    space = load_space(config.labels)
    limits = space.limits
    poses = make_poses(config, index)
    key = {
        **config.values(*NAMED_BY),
        "classes": space.names,
        "ground": limits.ground.tolist(),
        "max_height_m": limits.max_height_m.tolist(),
        "taller": limits.taller.tolist(),
        "vehicle": limits.vehicle.tolist(),
    }

    def inputs_of(scene: str) -> str:
        return digest_of([pixels.content(scene), poses.content(scene)])

    parts = split_scenes(index, frames=FRAMES, inputs_of=inputs_of)
    points = Artifact.of(config.store, "points", key, [pixels, poses])
    points = points.holding(parts, index.skipped())
    worker = partial(FuseWorker, config, index, pixels, poses, parts)
    return run_stage(points, points.shards(), worker, config)

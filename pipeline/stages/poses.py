"""Poses stage: corrects ego poses of key frames that disagree on the ground."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64

from clipsweep.pipeline.artifacts.read import geometry_layout, readable
from clipsweep.pipeline.artifacts.store import Artifact, Part
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.scenes import Shard, run_stage
from clipsweep.pipeline.stages.index import scene_frames, split_scenes
from clipsweep.projection.alignment import Alignment
from clipsweep.projection.frames import Frame
from clipsweep.projection.fusion import SweepReader, align_scene
from clipsweep.projection.pose import Pose
from clipsweep.projection.sweeps import read_sweep

_log = logging.getLogger(__name__)

NAMED_BY = (
    *("data.columns", "data.ego_box_m", "data.bad_share", "on_bad"),
    *("fusion.align", "fusion.window_s", "fusion.cell_m"),
)
"""Settings that decide the corrections."""


@dataclass(frozen=True, eq=False, slots=True)
class ScenePoses:
    """Readable key frames of a scene, and the corrections of their ego poses.

    Attributes:
        frames: ids of the key frames.
        grid_from_global: frame of the grid that the corrections are made in.
        alignment: the corrections, one for each of these frames.
    """

    frames: tuple[str, ...]
    grid_from_global: Pose
    alignment: Alignment


class PoseWorker:
    """Worker that aligns the key frames of a scene by their ground."""

    def __init__(self, config: Config, index: Artifact, parts: Sequence[Part]) -> None:
        self.config = config
        self.index = index
        self.parts = {part.shard: part for part in parts}

    def __call__(self, name: str) -> Shard:
        """Ego pose corrections of a scene, for the key frames that can be read."""
        part = self.parts[name]
        layout = geometry_layout(self.config.data)
        frames = scene_frames(self.index, self.config, part.scene)

        def read(frame: Frame) -> object:
            return read_sweep(frame.sweeps[0], layout)

        frames, skipped = readable(frames, self.config, read)
        if not frames:
            return Shard({}, skipped, {}, part.facts())
        reader = SweepReader(layout)
        grid_from_global = frames[0].sweeps[0].global_from_lidar.inverse()
        alignment = align_scene(frames, reader, self.config.fusion, grid_from_global)
        counts = _report_alignment(part.scene, alignment)
        arrays = {
            "corrections": np.stack([pose.matrix() for pose in alignment.corrections]),
            "fits": np.array(alignment.fits, np.uint8),
            "metres": np.array([alignment.before_m, alignment.after_m, alignment.largest_m]),
            "grid_from_global": grid_from_global.matrix(),
        }
        return Shard(arrays, skipped, counts, part.facts())


def _report_alignment(scene: str, alignment: Alignment) -> dict[str, int]:
    """Logs how the ego poses of a scene were corrected.

    Counts scenes corrected and frames left alone.
    """
    counts = {"scenes_aligned": 0, "frames_apart": 0}
    if alignment.corrected:
        counts["scenes_aligned"] += 1
        before_cm = 100 * alignment.before_m
        after_cm = 100 * alignment.after_m
        _log.info(
            f"{scene}: key frames differed in the height of the ground by {before_cm:.1f} cm;"
            f" aligned to {after_cm:.1f} cm, neighbours by up to {alignment.largest_m:.2f} m"
        )
    apart = alignment.fits.count(False)
    if apart:
        counts["frames_apart"] += apart
        whole = f"{apart} of {len(alignment.fits)} key frames do not fit the others' ground"
        _log.warning(f"{scene}: {whole} and are labelled by their own images alone")
    return counts


def make_poses(config: Config, index: Artifact) -> Artifact:
    """Corrects the ego poses of each scene: ``poses-<id>/``, one shard a scene."""
    parts = split_scenes(index)
    poses = Artifact.of(config.store, "poses", config.values(*NAMED_BY))
    poses = poses.holding(parts, index.skipped())
    worker = partial(PoseWorker, config, index, parts)
    return run_stage(poses, poses.shards(), worker, config)


def read_poses(poses: Artifact, scene: str) -> ScenePoses | None:
    """Reads the corrected ego poses of a scene; None where no key frame of it can be read."""
    part = next(part for part in poses.parts if part.scene == scene)
    lost = {skip.frame for skip in poses.skipped() if skip.scene == scene}
    frames = tuple(frame for frame in part.frames if frame not in lost)
    if not frames:
        return None
    file = poses.arrays(part.shard)
    corrections = tuple(_pose(matrix) for matrix in file.get_tensor("corrections"))
    fits = tuple(bool(fit) for fit in file.get_tensor("fits"))
    before_m, after_m, largest_m = file.get_tensor("metres").tolist()
    alignment = Alignment(corrections, before_m, after_m, largest_m, fits)
    return ScenePoses(frames, _pose(file.get_tensor("grid_from_global")), alignment)


def _pose(matrix: Float64[np.ndarray, "3 4"]) -> Pose:
    return Pose.from_matrix(matrix.ravel().tolist())

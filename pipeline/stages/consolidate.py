"""Consolidation stage: pseudo-labels by a student, averaged over views of a sweep and over time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np
from jaxtyping import Float32

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.read import (
    raw_rows,
    read_points,
    record_older_sweep,
    skip_or_raise,
    sweep_layout,
    usable_cloud,
)
from clipsweep.pipeline.artifacts.store import Artifact, Part, digest_of
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import load_space
from clipsweep.pipeline.run.scenes import Shard, run_stage
from clipsweep.pipeline.stages.fit import READS_CLOUDS
from clipsweep.pipeline.stages.index import scene_frames, split_scenes
from clipsweep.pipeline.stages.points import FRAMES, count_labels
from clipsweep.pipeline.stages.poses import make_poses, read_poses
from clipsweep.pipeline.stages.predict import label_protocol, open_student, training_scenes
from clipsweep.projection.consolidation import Consolidated, add_teacher, consolidate
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Cloud, Frame, PointLabels
from clipsweep.projection.grid import cell_keys
from clipsweep.projection.pose import Pose

_log = logging.getLogger(__name__)


class ConsolidateWorker:
    """Worker that labels the key sweeps of a shard by a student, consolidated over time."""

    def __init__(
        self,
        config: Config,
        index: Artifact,
        poses: Artifact,
        student: str,
        teacher: Artifact | None,
        parts: Sequence[Part],
    ) -> None:
        self.config = config
        self.index = index
        self.poses = poses
        self.teacher = teacher
        self.parts = {part.shard: part for part in parts}
        self.names = load_space(config.labels).names
        lost = [*poses.skipped(), *(teacher.skipped() if teacher else ())]
        self.lost = {skip.frame: skip for skip in lost}
        self.trained, _ = open_student(config, student)

    def __call__(self, name: str) -> Shard:
        """Consolidated labels of the key sweeps of a shard."""
        part = self.parts[name]
        skipped = [self.lost[frame] for frame in part.frames if frame in self.lost]
        frames = scene_frames(self.index, self.config, part.scene)
        frames = [frame for frame in frames if frame.id not in self.lost]
        arrays: dict[str, np.ndarray] = {}
        for group in self._groups(part, frames):
            arrays |= self._label(part, group, skipped)
        counts = count_labels(arrays, self.names)
        return Shard(arrays, skipped, counts, part.facts())

    def _groups(self, part: Part, frames: list[Frame]) -> list[list[Frame]]:
        """Key frames that share cells: all whose poses fit, and each of the others alone.

        Those of the shard, and those around them within the window.
        """
        scene = read_poses(self.poses, part.scene)
        wanted = set(part.frames)
        of_part = [frame for frame in frames if frame.id in wanted]
        if scene is None or not of_part:
            return []
        fits = dict(zip(scene.frames, scene.alignment.fits, strict=True))
        window = self.config.consolidation
        first_us = of_part[0].time_us - window.past_s * 1e6
        last_us = of_part[-1].time_us + window.future_s * 1e6
        together = [f for f in frames if fits[f.id] and first_us <= f.time_us <= last_us]
        return [together, *([frame] for frame in of_part if not fits[frame.id])]

    def _label(self, part: Part, frames: list[Frame], skipped: list[Skip]) -> dict[str, np.ndarray]:
        """Labels of the key frames of a part, with the others of a group around them."""
        wanted = set(part.frames)
        pose_of = self._poses(part.scene)
        clouds: list[Cloud] = []
        probabilities: list[Float32[np.ndarray, "n c"]] = []
        keys: list[np.ndarray] = []
        good: list[Frame] = []
        for frame in frames:
            try:
                cloud, probability = self._predict(frame, skipped)
            except BadInput as error:
                lost = skip_or_raise(error, frame, self.config)
                if frame.id in wanted:
                    skipped.append(lost)
                continue
            pose = pose_of[frame.id] @ frame.sweeps[0].global_from_lidar
            good.append(frame)
            clouds.append(cloud)
            probabilities.append(probability)
            keys.append(cell_keys(cloud.xyz, self.config.consolidation.cell_m, pose))
        of_part = [row for row, frame in enumerate(good) if frame.id in wanted]
        if not of_part:
            return {}
        times_us = [frame.time_us for frame in good]
        rows = range(of_part[0], of_part[-1] + 1)
        found = consolidate(keys, probabilities, times_us, rows, self.config.consolidation)
        arrays: dict[str, np.ndarray] = {}
        for row, labels in zip(rows, found, strict=True):
            arrays |= self._arrays(good[row], clouds[row], labels)
        return arrays

    def _poses(self, scene: str) -> Mapping[str, Pose]:
        """Pose of the global frame in the grid, corrected for each key frame of a scene."""
        poses = read_poses(self.poses, scene)
        assert poses is not None  # as there are frames
        corrections = zip(poses.frames, poses.alignment.corrections, strict=True)
        return {frame: correction @ poses.grid_from_global for frame, correction in corrections}

    def _predict(
        self, frame: Frame, skipped: list[Skip]
    ) -> tuple[Cloud, Float32[np.ndarray, "n c"]]:
        """Key sweep without bad points, and the class probabilities of its points."""
        left_out = partial(record_older_sweep, skipped, frame.scene)
        whole = replace(sweep_layout(self.config), ego_box_m=0.0)
        cloud = usable_cloud(frame, self.config, whole, self.trained.model.sweeps, left_out)
        probability = self.trained.probabilities(
            cloud.xyz,
            cloud.intensity,
            cloud.age_s,
            self.config.data.sensor_height_m,
            cloud.origin[cloud.sweep],
            self.config.consolidation.views,
        )
        key = cloud.sweep == 0
        columns = ("xyz", "intensity", "age_s", "sweep", "source")
        cloud = replace(cloud, **{name: getattr(cloud, name)[key] for name in columns})
        return cloud, probability[key]

    def _arrays(self, frame: Frame, cloud: Cloud, labels: Consolidated) -> dict[str, np.ndarray]:
        """Labels of every raw row; rows that are no points get the frame's most frequent one."""
        probability = labels.probability
        if self.teacher is not None:
            fused = read_points(self.teacher, frame)
            own = PointLabels(
                *(getattr(fused, name)[cloud.source] for name in PointLabels.__slots__)
            )
            weight = self.config.consolidation.teacher_weight
            probability = add_teacher(probability, own, weight)
        best = probability.argmax(1)
        rows = np.arange(len(best))
        count = raw_rows(frame, self.config)
        label = np.full(count, np.bincount(best).argmax(), np.uint8)
        score = np.zeros(count, np.float16)
        agreement = np.zeros(count, np.float16)
        label[cloud.source] = best
        score[cloud.source] = probability[rows, best]
        agreement[cloud.source] = labels.cell[rows, best]
        return {
            f"{frame.id}/label": label,
            f"{frame.id}/score": score,
            f"{frame.id}/agreement": agreement,
        }


def make_consolidated(
    config: Config, index: Artifact, student: str, *roles: str, teacher: Artifact | None = None
) -> Artifact:
    """Labels key sweeps by a student, consolidated over views and time: ``points-<id>/``.

    Args:
        config: everything else.
        index: of the frames.
        student: folder of the student.
        roles: ``train`` and ``eval``: splits that are labelled; none is both.
        teacher: fused pixel labels of the same frames, which ``consolidation.teacher_weight`` mixes
            in; None leaves them out.

    Raises:
        BadInput: the student or a frame cannot be used.
    """
    _, digest = open_student(config, student)
    poses = make_poses(config, index)
    weight = config.consolidation.teacher_weight if teacher else 0.0
    settings = replace(config.consolidation, teacher_weight=weight)
    key = {
        **config.values(*READS_CLOUDS),
        "consolidation": asdict(settings),
        "classes": load_space(config.labels).names,
        "student": digest,
        "protocol": label_protocol(student),
        "trained_on": training_scenes(student),
    }

    def inputs_of(scene: str) -> str:
        return digest_of([poses.content(scene), teacher.content(scene) if teacher else ""])

    parts = split_scenes(index, *roles, frames=FRAMES, inputs_of=inputs_of)
    scenes = {part.scene for part in parts}
    lost = [skip for skip in index.skipped() if skip.scene in scenes]
    inputs = [poses, teacher] if teacher else [poses]
    points = Artifact.of(config.store, "points", key, inputs).holding(parts, lost)
    worker = partial(ConsolidateWorker, config, index, poses, student, teacher, parts)
    return run_stage(points, points.shards(), worker, config, gpu=True)


def collapse_warnings(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Signs of collapse in self-training: classes that a round nearly loses, or one that takes all.

    Args:
        before: share of each class in the labels that the round's student learned from.
        after: its share in the labels that this student gives the same frames.

    Returns:
        A text for each class whose share fell below a fifth, and one where the entropy of the
        shares fell by a quarter.
    """
    warnings = [
        f"{name} falls from {100 * share:.2f} to {100 * after.get(name, 0.0):.2f} % of the points"
        for name, share in before.items()
        if share > 0 and after.get(name, 0.0) < share / 5
    ]
    entropies = [_entropy(shares) for shares in (before, after)]
    if entropies[1] < 0.75 * entropies[0]:
        warnings.append(
            f"the entropy of the classes falls from {entropies[0]:.2f} to {entropies[1]:.2f} nats"
        )
    return warnings


def _entropy(shares: Mapping[str, float]) -> float:
    values = np.array([share for share in shares.values() if share > 0])
    return float(-(values * np.log(values)).sum())

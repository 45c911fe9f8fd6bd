"""From artifacts to batches: reads a sweep, looks up what was said of its points, moves it, cuts it into voxels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import UInt8
from torch.utils.data import DataLoader, Dataset

from distill.augment import augment
from distill.batch import Batch, Sample, Voxels, collate, voxelise
from pipeline.config import Config
from pipeline.datasets import DATASETS
from pipeline.labels import LabelSpace
from pipeline.store import Artifact
from projection.cameras import look_up, project, visible
from projection.errors import BadInput
from projection.frames import NONE, Cloud, Frame, PixelLabels, PointLabels
from projection.sweeps import merge


def read_pixels(pixels: Artifact, frame: Frame) -> list[PixelLabels]:
    """The teacher's word on a frame's images, in the order of its cameras."""
    file = pixels.arrays(frame.scene)
    names = set(file.keys())

    def of(camera: str) -> PixelLabels:
        prefix = f"{frame.id}/{camera}"
        feature = file.get_tensor(f"{prefix}/feature") if f"{prefix}/feature" in names else None
        return PixelLabels(file.get_tensor(f"{prefix}/label"), file.get_tensor(f"{prefix}/score"), feature)

    return [of(camera.name) for camera in frame.cameras]


def read_points(points: Artifact, frame: Frame) -> PointLabels:
    """The fused labels of a frame's key sweep."""
    file = points.arrays(frame.scene)
    return PointLabels(*(file.get_tensor(f"{frame.id}/{name}") for name in ("label", "score", "agreement")))


Targets = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row of the point, class and confidence of each target."""


def pixel_targets(pixels: Artifact, config: Config, frame: Frame, cloud: Cloud) -> Targets:
    """A target for each visible point-pixel pair whose pixel has a label."""
    fusion = config.fusion
    pairs = project(cloud.xyz, frame.sweeps[0].global_from_lidar, frame.cameras, fusion.min_depth_m)
    pairs = pairs[visible(pairs, frame.cameras, fusion.occlusion_px, fusion.occlusion_relative, fusion.occlusion_m)]
    label, score = look_up(pairs, frame.cameras, read_pixels(pixels, frame))
    named = label != NONE
    return pairs.point[named].astype(np.int64), label[named].astype(np.int64), score[named]


def point_targets(points: Artifact, frame: Frame, cloud: Cloud) -> Targets:
    """A target for each point that the fused labels have an opinion of."""
    said = read_points(points, frame)
    label = said.label[cloud.source]
    rows = np.flatnonzero(label != NONE)
    return rows, label[rows].astype(np.int64), said.score[cloud.source[rows]].astype(np.float32)


def read_truth(frame: Frame, space: LabelSpace, config: Config) -> UInt8[np.ndarray, " n"] | None:
    """True class of every raw row of a frame's key sweep, 255 = ignored; None where the frame has no labels.

    Raises:
        BadInput: the label file is not the indexed one, or has an id that the label space does not know.
    """
    if frame.labels is None:
        return None
    raw = DATASETS[config.data.kind].labels(frame.labels.read())
    return space.from_raw(raw, frame.labels.path)


def truth_targets(space: LabelSpace, config: Config, frame: Frame, cloud: Cloud) -> Targets:
    """A target for each point that has a true class."""
    truth = read_truth(frame, space, config)
    assert truth is not None
    label = truth[cloud.source]
    rows = np.flatnonzero(label != NONE)
    return rows, label[rows].astype(np.int64), np.ones(len(rows), np.float32)


def key_cloud(frame: Frame, config: Config, ego_box_m: float) -> Cloud:
    """The key sweep of a frame as the student takes it."""
    data = config.data
    return merge(frame, 1, data.columns, data.intensity_scale, ego_box_m, data.bad_share)


@dataclass(frozen=True)
class TrainingFrames(Dataset[Voxels | BadInput]):
    """Frames by (epoch, number), each with a random state of its own, so that the order of loading cannot matter.

    A frame that turns out bad is answered as its error: worker processes cannot raise it whole.
    """

    frames: Sequence[Frame]
    targets: Callable[[Frame, Cloud], Targets]
    config: Config

    def __getitem__(self, item: tuple[int, int]) -> Voxels | BadInput:
        epoch, number = item
        frame, random = self.frames[number], np.random.default_rng([self.config.seed, epoch, number])
        try:
            cloud = key_cloud(frame, self.config, self.config.data.ego_box_m)
            point, label, score = self.targets(frame, cloud)
        except BadInput as error:
            return error
        xyz = augment(cloud.xyz, self.config.train.augment, random)
        model = self.config.model
        return voxelise(
            Sample(frame.id, xyz, cloud.intensity, cloud.age_s, point, label, score),
            voxel_m=model.voxel_m,
            features=model.features,
            reduce=model.reduce,
            sensor_height_m=self.config.data.sensor_height_m,
            max_voxels=model.max_voxels,
            trilinear=model.trilinear,
            generator=random,
        )


def _collate(items: list[Voxels | BadInput]) -> Batch | BadInput:
    bad = [item for item in items if isinstance(item, BadInput)]
    return bad[0] if bad else collate([item for item in items if isinstance(item, Voxels)])


def epoch_order(seed: int, epoch: int, frames: int, batch_size: int) -> list[list[tuple[int, int]]]:
    """The batches of an epoch as (epoch, number) of frames; every frame once."""
    order = np.random.default_rng([seed, epoch]).permutation(frames)
    return [[(epoch, int(i)) for i in order[at : at + batch_size]] for at in range(0, frames, batch_size)]


def training_batches(
    frames: Sequence[Frame], targets: Callable[[Frame, Cloud], Targets], config: Config, start_epoch: int
) -> Iterator[Batch]:
    """The batches of all epochs from ``start_epoch`` on, made by ``run.loaders`` processes beside the training.

    Raises:
        BadInput: a frame cannot be read.
    """
    epochs = range(start_epoch, config.train.epochs)
    order = [b for e in epochs for b in epoch_order(config.seed, e, len(frames), config.train.batch_size)]
    loader = DataLoader(
        TrainingFrames(frames, targets, config),
        batch_sampler=order,
        collate_fn=_collate,
        num_workers=config.run.loaders,
        pin_memory=torch.cuda.is_available(),
    )
    for batch in loader:
        if isinstance(batch, BadInput):
            raise batch
        yield batch


def prediction_batch(frame: Frame, cloud: Cloud, config: Config) -> Batch:
    """One frame for the student to predict: no limit of voxels, no augmentation, every point of the cloud."""
    model = config.model
    return collate(
        [
            voxelise(
                Sample.of_points(frame.id, cloud.xyz, cloud.intensity, cloud.age_s),
                voxel_m=model.voxel_m,
                features=model.features,
                reduce=model.reduce,
                sensor_height_m=config.data.sensor_height_m,
                trilinear=model.trilinear,
            )
        ]
    )


def target_source(kind: str, pixels: Artifact, points: Artifact, config: Config) -> Callable[[Frame, Cloud], Targets]:
    """What the student learns from: the pairs of ``pixels`` or the fused ``points``."""
    sources: dict[str, Callable[[Frame, Cloud], Targets]] = {
        "pixels": partial(pixel_targets, pixels, config),
        "points": partial(point_targets, points),
    }
    return sources[kind]

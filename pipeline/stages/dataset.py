"""PyTorch training data set and data loader for point clouds.

Point clouds get targets, are augmented, voxelized and collated into batches.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float16, Int64
from torch.utils.data import DataLoader, Dataset

from clipsweep.distill.student.augment import augment
from clipsweep.distill.student.batch import Batch, SweepSet, collate_groups
from clipsweep.distill.student.voxels import Sample, Voxels, voxelize
from clipsweep.distill.training.distributed import rank, world_size
from clipsweep.pipeline.artifacts.read import (
    read_pixels,
    read_points,
    read_truth,
    sweep_layout,
    usable_cloud,
)
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.labels import LabelSpace
from clipsweep.projection.cameras import pixel_rows
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Cloud, Frame
from clipsweep.projection.fusion import visible_pairs
from clipsweep.projection.grid import cell_keys, index_cells
from clipsweep.projection.sweeps import choose_sweeps


@dataclass(frozen=True, eq=False, slots=True)
class Targets:
    """Training targets: class, and pixel feature, of some points of a point cloud.

    Attributes:
        point: row of the point.
        label: its class.
        pixel: row of its pixel in ``feature``, if there are features.
        feature: unit features of the pixels of all the frame's images.
    """

    point: Int64[np.ndarray, " m"]
    label: Int64[np.ndarray, " m"]
    pixel: Int64[np.ndarray, " m"] | None = None
    feature: Float16[np.ndarray, "q d"] | None = None


def no_targets(frame: Frame, cloud: Cloud) -> Targets:
    """Training targets of a frame that has no labels: all points ignored."""
    nothing = np.empty(0, np.int64)
    return Targets(nothing, nothing)


def pixel_targets(pixels: Artifact, config: Config, frame: Frame, cloud: Cloud) -> Targets:
    """Training targets from pixels: each visible point-pixel pair with a pixel label.

    If nothing asks for labels, each pair with a pixel feature.
    """
    pairs = visible_pairs(frame, cloud.xyz, config.fusion)
    images = read_pixels(pixels, frame)
    pixel = pixel_rows(pairs, frame.cameras, [image.label.shape for image in images])
    label = np.concatenate([image.label.ravel() for image in images] or [np.empty(0, np.uint8)])[
        pixel
    ]
    objectives = config.objectives
    labelled: slice | np.ndarray = slice(None)
    if objectives.needs_labels():
        labelled = np.flatnonzero(label != NONE)
    targets = Targets(pairs.point[labelled].astype(np.int64), label[labelled].astype(np.int64))
    features = [image.feature for image in images if image.feature is not None]
    if not objectives.needs_features() or len(features) < len(images):
        return targets
    flat = np.concatenate([feature.reshape(-1, feature.shape[-1]) for feature in features])
    pixel = pixel_rows(pairs, frame.cameras, [feature.shape[:2] for feature in features])
    return replace(targets, pixel=pixel[labelled], feature=flat)


def point_targets(points: Artifact, frame: Frame, cloud: Cloud) -> Targets:
    """Training targets from fused pseudo-labels: each labelled point of the key sweep."""
    fused = read_points(points, frame)
    key = np.flatnonzero(cloud.sweep == 0)
    label = fused.label[cloud.source[key]]
    rows = key[label != NONE]
    return Targets(rows, label[label != NONE].astype(np.int64))


def truth_targets(space: LabelSpace, config: Config, frame: Frame, cloud: Cloud) -> Targets:
    """Training targets from human labels: each point that has a true class."""
    truth = read_truth(frame, space, config)
    assert truth is not None
    key = np.flatnonzero(cloud.sweep == 0)
    label = truth[cloud.source[key]]
    rows = key[label != NONE]
    return Targets(rows, label[label != NONE].astype(np.int64))


@dataclass(frozen=True)
class TrainingFrames(Dataset[SweepSet | BadInput]):
    """PyTorch data set of training frames by (epoch, number).

    Each frame has a random state of its own, so that the order of loading cannot matter.

    A frame that turns out bad is answered as its error: worker processes cannot raise it whole.
    """

    frames: Sequence[Frame]
    targets: Callable[[Frame, Cloud], Targets]
    config: Config

    def __getitem__(self, item: tuple[int, int]) -> SweepSet | BadInput:
        """Loads a training frame: sweeps, each augmented by itself and voxelized, with targets."""
        epoch, number = item
        random = np.random.default_rng([self.config.seed, epoch, number])
        settings = self.config.train
        merged = self.config.model.sweeps
        left_out = list[BadInput]()
        try:
            count = settings.sweeps * merged
            among = settings.sweeps_among if merged == 1 else 0  # the newest, as in inference
            age_s = settings.max_age_s or np.inf
            frame = choose_sweeps(self.frames[number], count, among, age_s, random)
            layout = sweep_layout(self.config)
            cloud = usable_cloud(frame, self.config, layout, len(frame.sweeps), left_out.append)
            targets = self.targets(frame, cloud)
        except BadInput as error:
            return error
        voxel = self._voxel_ids(cloud, targets)
        passed = cloud.sweep // merged
        ends = np.cumsum(np.bincount(passed))
        parts = [
            slice(start, end) for start, end in zip([0, *ends], ends, strict=False) if start < end
        ]
        sweeps = [self._voxels(frame, cloud, targets, voxel, part, random) for part in parts]
        return SweepSet(sweeps, targets.feature, tuple(map(str, left_out)))

    def _voxel_ids(self, cloud: Cloud, targets: Targets) -> Int64[np.ndarray, " m"] | None:
        """Voxel of each target, before any augmentation, numbered over all merged sweeps."""
        wanted = self.config.objectives.spatiotemporal
        if not wanted.weight:
            return None
        _, voxel = index_cells(cell_keys(cloud.xyz, wanted.cell_m)[targets.point])
        return voxel.astype(np.int64)

    def _voxels(
        self,
        frame: Frame,
        cloud: Cloud,
        targets: Targets,
        voxel: Int64[np.ndarray, " m"] | None,
        part: slice,
        random: np.random.Generator,
    ) -> Voxels:
        """Augments and voxelizes some rows of a point cloud, with their targets."""
        mine = np.flatnonzero((targets.point >= part.start) & (targets.point < part.stop))
        points = np.concatenate([cloud.xyz[part], cloud.origin])
        points = augment(points, self.config.train.augment, random)
        xyz, origin = np.split(points, [len(points) - len(cloud.origin)])
        sample = Sample(
            frame=frame.id,
            xyz=xyz,
            intensity=cloud.intensity[part],
            age_s=cloud.age_s[part],
            pair_point=targets.point[mine] - part.start,
            pair_label=targets.label[mine],
            pair_pixel=None if targets.pixel is None else targets.pixel[mine],
            voxel_id=None if voxel is None else voxel[mine],
            origin=origin[cloud.sweep[part]],
        )
        model = self.config.model
        return voxelize(
            sample,
            voxel_m=model.voxel_m,
            features=model.features,
            reduce=model.reduce,
            sensor_height_m=self.config.data.sensor_height_m,
            max_voxels=model.max_voxels,
            trilinear=model.trilinear,
            generator=random,
        )


def _collate(items: list[SweepSet | BadInput]) -> Batch | BadInput:
    bad = [item for item in items if isinstance(item, BadInput)]
    return bad[0] if bad else collate_groups([item for item in items if isinstance(item, SweepSet)])


def training_steps(config: Config, frames: int) -> int:
    """Number of training steps of ``train.epochs``; every step has the same number of frames."""
    train = config.train
    return -(-train.epochs * frames // (train.batch_size * train.accumulate))


def batch_order(
    seed: int, frames: int, batch_size: int, batches: range
) -> Iterator[list[tuple[int, int]]]:
    """Sampler: batches of an endless training as (epoch, number) of frames.

    Epochs, each with every frame once, follow one another in one stream that is split into batches
    of one size.
    """
    epoch = -1
    order = np.empty(0, np.int64)
    for batch in batches:
        picked = []
        for place in range(batch * batch_size, (batch + 1) * batch_size):
            if place // frames != epoch:
                epoch = place // frames
                order = np.random.default_rng([seed, epoch]).permutation(frames)
            picked.append((epoch, int(order[place % frames])))
        yield picked


def _leave_signals_alone(worker: int) -> None:
    """Makes data loader workers ignore signals, so that a training can end with a checkpoint.

    A loader ends with the training, which may want one more batch after a signal to the whole
    process group.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def training_batches(
    frames: Sequence[Frame],
    targets: Callable[[Frame, Cloud], Targets],
    config: Config,
    steps: range,
) -> Generator[Batch, None, None]:
    """Data loader: the batches of some steps of a training, from ``run.loaders`` processes.

    The processes run beside the training.

    Of several workers each gets its part of every batch. Close it: the processes live as long as it
    does.

    Raises:
        BadInput: a frame cannot be read, or there are more workers than frames in a batch.
    """
    size = config.train.batch_size
    if size < world_size():
        raise BadInput(
            "train.batch_size", f"is {size}", f"{world_size()} workers need as many frames"
        )
    if -(-size // world_size()) * config.train.sweeps > 128:
        raise BadInput(
            "train.batch_size",
            f"{size} frames of {config.train.sweeps} sweeps are too many",
            "128 in all",
        )
    batches = range(steps.start * config.train.accumulate, steps.stop * config.train.accumulate)
    loader = DataLoader(
        TrainingFrames(frames, targets, config),
        batch_sampler=(
            batch[rank() :: world_size()]
            for batch in batch_order(config.seed, len(frames), size, batches)
        ),
        collate_fn=_collate,
        num_workers=config.run.loaders,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_leave_signals_alone,
    )
    for batch in loader:
        if isinstance(batch, BadInput):
            raise batch
        yield batch


def target_source(
    kind: str, pixels: Artifact, points: Artifact, config: Config
) -> Callable[[Frame, Cloud], Targets]:
    """Source of training targets: the pairs of ``pixels`` or the fused ``points``."""
    sources: dict[str, Callable[[Frame, Cloud], Targets]] = {
        "pixels": partial(pixel_targets, pixels, config),
        "points": partial(point_targets, points),
    }
    return sources[kind]

"""From artifacts to batches.

Sweeps apart, pixels and voxels numbered through, and nothing that depends on order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch

from clipsweep.distill.objectives import ObjectivesConfig
from clipsweep.distill.objectives.spatiotemporal import SpatioTemporalConfig
from clipsweep.distill.student.augment import AugmentConfig
from clipsweep.distill.student.batch import Batch
from clipsweep.pipeline.artifacts.read import (
    key_cloud,
    read_pixels,
    sweep_layout,
    usable_cloud,
)
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.stages import dataset
from clipsweep.pipeline.stages import fit as training
from clipsweep.pipeline.stages.dataset import (
    TrainingFrames,
    batch_order,
    no_targets,
    pixel_targets,
    target_source,
    training_batches,
    training_steps,
)
from clipsweep.pipeline.stages.index import make_index, scene_frames
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.stages.points import make_points
from clipsweep.pipeline.stages.pretrain import make_pretrained
from clipsweep.projection.frames import Frame, PixelLabels
from tests.helpers import settings


@pytest.fixture
def ready(small_world: Path, tmp_path: Path) -> tuple[Config, Artifact, Artifact, list[Frame]]:
    config = load_config([*settings(small_world, tmp_path / "store"), "train.epochs=2"])
    index = make_index(config)
    pixels = make_pixels(config, index)
    points = make_points(config, index, pixels)
    return config, pixels, points, scene_frames(index, config, "scene-0061")


def same(one: Batch, two: Batch) -> bool:
    return (
        torch.equal(one.coords, two.coords)
        and torch.equal(one.feats, two.feats)
        and one.frames == two.frames
    )


def test_every_frame_comes_once_an_epoch_and_the_seed_decides() -> None:
    order = list(batch_order(0, 10, 4, range(5)))
    assert [len(batch) for batch in order] == [4] * 5
    stream = [item for batch in order for item in batch]
    assert [epoch for epoch, _ in stream] == [0] * 10 + [1] * 10
    assert [sorted(number for _, number in stream[at : at + 10]) for at in (0, 10)] == [
        list(range(10))
    ] * 2
    assert stream[:10] != [(0, number) for _, number in stream[10:]]
    assert list(batch_order(0, 10, 4, range(3, 5))) == order[3:]
    assert list(batch_order(1, 10, 4, range(5))) != order
    assert next(batch_order(0, 2, 5, range(1)))[-1][0] == 2  # a batch may be larger than an epoch


def test_steps_cover_the_epochs() -> None:
    config = load_config(["train.epochs=3", "train.batch_size=4", "train.accumulate=2"])
    assert [training_steps(config, frames) for frames in (8, 9, 16)] == [3, 4, 6]
    assert training_steps(load_config(["train.epochs=0"]), 9) == 0


@pytest.mark.parametrize("kind", ["pixels", "points"])
def test_targets_are_the_labels_of_points(ready: tuple, kind: str) -> None:
    config, pixels, points, frames = ready
    cloud = key_cloud(frames[0], config)
    targets = target_source(kind, pixels, points, config)(frames[0], cloud)
    assert set(np.unique(targets.label)) <= {10, 14}  # road below, buildings above
    assert len(targets.point) == len(targets.label) > 100
    assert targets.point.max() < len(cloud.xyz)
    low = cloud.xyz[targets.point, 2] < -1.7
    assert (targets.label[low] == 10).mean() > 0.9


def test_batches_are_the_same_with_and_without_worker_processes(ready: tuple) -> None:
    config, pixels, points, frames = ready
    targets = target_source("points", pixels, points, config)
    here = list(training_batches(frames, targets, config, range(3)))
    beside = list(
        training_batches(
            frames, targets, replace(config, run=replace(config.run, loaders=2)), range(3)
        )
    )
    later = list(training_batches(frames, targets, config, range(1, 3)))
    assert len(here) == 3
    assert all(same(a, b) for a, b in zip(here, beside, strict=True))
    assert all(same(a, b) for a, b in zip(here[1:], later, strict=True))
    assert not same(here[0], here[1])


def test_sweeps_pass_apart_and_share_voxels(ready: tuple) -> None:
    config, pixels, points, frames = ready
    objectives = ObjectivesConfig(spatiotemporal=SpatioTemporalConfig(weight=1.0, cell_m=0.5))
    config = replace(
        config,
        objectives=objectives,
        train=replace(config.train, sweeps=3, sweeps_among=5, batch_size=2),
    )
    targets = target_source("pixels", pixels, points, config)
    batch = next(iter(training_batches(frames, targets, config, range(1, 3))))
    passes = {frame.id: min(3, len(frame.sweeps)) for frame in frames}
    assert {frame: batch.frames.count(frame) for frame in batch.frames} == {
        frame: passes[frame] for frame in batch.frames
    }
    assert int(batch.coords[:, 0].max()) + 1 == len(batch.frames)
    assert batch.voxel_id is not None
    assert len(batch.voxel_id) == len(batch.pair_point) == len(batch.pair_label)
    voxels = int(batch.voxel_id.max()) + 1
    shared = batch.voxel_id.bincount()
    assert len(torch.unique(batch.voxel_id)) == voxels < len(batch.voxel_id)
    assert (shared > 1).any()


def test_older_sweeps_than_asked_for_are_not_drawn(ready: tuple) -> None:
    config, pixels, points, frames = ready
    # sweeps are 0.05 s apart
    config = replace(config, train=replace(config.train, sweeps=6, max_age_s=0.12))
    last = max(frames, key=lambda frame: frame.time_us)
    groups = TrainingFrames(frames, target_source("pixels", pixels, points, config), config)
    assert len(groups[0, frames.index(last)].sweeps) == 3


def test_merged_sweeps_are_one_cloud(ready: tuple) -> None:
    config, pixels, points, frames = ready
    config = replace(
        config, model=replace(config.model, sweeps=3), train=replace(config.train, batch_size=1)
    )
    group = TrainingFrames(frames, target_source("points", pixels, points, config), config)[0, 2]
    assert len(group.sweeps) == 1
    single = key_cloud(frames[2], config)
    assert len(group.sweeps[0].inverse) > 2.5 * len(single.xyz)
    # fused labels are those of the key sweep
    assert group.sweeps[0].pair_point.max() < len(single.xyz)


def test_merged_sweeps_are_predicted_at_ages_of_training(ready: tuple) -> None:
    config, pixels, points, frames = ready
    model = replace(config.model, sweeps=3, features=("age",), reduce="max", voxel_m=0.002)
    config = replace(config, model=model, train=replace(config.train, sweeps_among=10))
    last = max(frames, key=lambda frame: frame.time_us)
    predicted = usable_cloud(last, config, sweep_layout(config), model.sweeps, pytest.fail)
    training = TrainingFrames(frames, target_source("points", pixels, points, config), config)
    for epoch in range(5):
        trained = training[epoch, frames.index(last)].sweeps[0]
        ages = np.unique(trained.feats.round(3))
        np.testing.assert_allclose(ages, np.unique(predicted.age_s.round(3)), atol=2e-3)
        assert len(ages) == 3


def test_ranges_of_older_sweeps_are_those_that_they_measured(ready: tuple) -> None:
    config, pixels, points, frames = ready
    train = replace(config.train, sweeps=3, augment=AugmentConfig(scale=0.5))
    model = replace(config.model, features=("range",), reduce="max", voxel_m=0.002)
    config = replace(config, train=train, model=model)
    last = max(frames, key=lambda frame: frame.time_us)
    training = TrainingFrames(frames, target_source("points", pixels, points, config), config)
    sweeps = training[0, frames.index(last)].sweeps
    for voxels, sweep in zip(sweeps, last.sweeps[:3], strict=True):
        cloud = key_cloud(replace(last, sweeps=(sweep,)), config)
        measured = np.linalg.norm(cloud.xyz, axis=1)
        scale = voxels.feats[voxels.inverse, 0] / measured
        assert 0.5 < np.median(scale) < 1.5
        np.testing.assert_allclose(scale, np.median(scale), rtol=1e-2)


def test_a_frame_without_targets_passes(ready: tuple) -> None:
    config, _, _, frames = ready
    batches = list(training_batches(frames, no_targets, config, range(3)))
    assert len(batches) == 3
    assert all(len(batch.pair_point) == 0 < len(batch.coords) for batch in batches)


def test_labels_and_scores_come_back_as_stored(ready: tuple) -> None:
    config, pixels, _, frames = ready
    images = read_pixels(pixels, frames[0])
    assert [image.label.shape for image in images] == [(64, 128)] * 6
    assert all(image.label[0, 0] == 14 and image.label[-1, -1] == 10 for image in images)
    cloud = key_cloud(frames[0], config)
    assert pixel_targets(pixels, config, frames[0], cloud).feature is None


def test_features_have_a_coarser_grid_than_labels(
    ready: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels and features that tell which cell of a 4 x 8 grid they lie in."""
    config, pixels, _, frames = ready
    cell = np.arange(32).reshape(4, 8)
    image = PixelLabels(
        cell.repeat(4, 0).repeat(4, 1).astype(np.uint8),
        np.ones((16, 32), np.float16),
        cell[..., None].astype(np.float16),
    )
    monkeypatch.setattr(dataset, "read_pixels", lambda *_: [image] * len(frames[0].cameras))
    objectives = ObjectivesConfig(spatiotemporal=SpatioTemporalConfig(weight=1.0))
    config = replace(config, objectives=objectives)
    targets = pixel_targets(pixels, config, frames[0], key_cloud(frames[0], config))
    assert targets.feature is not None
    assert targets.feature.shape == (6 * 32, 1)
    assert len(np.unique(targets.label)) > 10
    np.testing.assert_array_equal(targets.feature[targets.pixel, 0], targets.label)


def test_a_training_that_fails_leaves_no_loader_behind(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python joins its children when it ends.

    A loader that still waits for work would keep it from ending.
    """

    def fail(
        learner: object,
        terms_of: object,
        batches: Iterator[Batch],
        *rest: object,
        **others: object,
    ) -> None:
        next(batches)
        assert active_children()
        raise RuntimeError("in the middle")

    monkeypatch.setattr(training, "train", fail)
    with pytest.raises(RuntimeError, match="in the middle") as held:
        make_pretrained(load_config([*settings(small_world, tmp_path / "store"), "run.loaders=1"]))
    assert held.traceback  # a reference to the error keeps its frames alive
    assert not active_children()

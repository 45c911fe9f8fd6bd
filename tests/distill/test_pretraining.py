"""The terms of pre-training put together.

Which heads get which terms, and when the student's own labels replace the teacher's.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from clipsweep.distill.objectives import Moment, ObjectivesConfig, pretraining
from clipsweep.distill.objectives.regression import RegressionConfig
from clipsweep.distill.objectives.selftraining import SelfTrainingConfig, switched
from clipsweep.distill.objectives.semantic import SemanticConfig, semantic
from clipsweep.distill.objectives.spatiotemporal import SpatioTemporalConfig
from clipsweep.distill.student.batch import Batch, SweepSet, collate_groups
from clipsweep.distill.student.checkpoint import make_student
from clipsweep.distill.student.unet import ModelConfig, Student
from clipsweep.distill.student.voxels import Sample, voxelize
from clipsweep.pipeline.config import load_config

MODEL = ModelConfig(size="tiny", voxel_m=0.5)
TEXT = torch.eye(4)
EARLY = Moment(0.0, 0.0)
LATE = Moment(0.9, 0.0)


@pytest.fixture
def batch() -> Batch:
    """Two frames of two sweeps, half of the points paired, with features of 50 pixels a frame."""
    random = np.random.default_rng(0)

    def sweep(name: str) -> Sample:
        paired = np.arange(0, 200, 2)
        return Sample(
            frame=name,
            xyz=random.uniform(-3, 3, (200, 3)).astype(np.float32),
            intensity=np.ones(200, np.float32),
            age_s=np.zeros(200, np.float32),
            pair_point=paired,
            pair_label=random.integers(0, 4, 100),
            pair_pixel=random.integers(0, 50, 100),
            voxel_id=random.integers(0, 30, 100),
        )

    def voxels_of(sample: Sample):
        return voxelize(
            sample,
            voxel_m=MODEL.voxel_m,
            features=MODEL.features,
            reduce=MODEL.reduce,
            sensor_height_m=0.0,
        )

    feature = random.normal(size=(2, 50, 4))
    feature = (feature / np.linalg.norm(feature, axis=2, keepdims=True)).astype(np.float16)
    return collate_groups(
        [
            SweepSet([voxels_of(sweep(name)), voxels_of(sweep(name))], pixel)
            for name, pixel in zip("ab", feature, strict=True)
        ]
    )


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return make_student(MODEL, 4)


def test_pixels_and_voxels_are_numbered_through(batch: Batch) -> None:
    assert batch.pixel is not None
    assert batch.pair_pixel is not None
    assert batch.voxel_id is not None
    assert batch.pixel.shape == (100, 4)
    assert (batch.pair_pixel[:200] < 50).all()
    assert (batch.pair_pixel[200:] >= 50).all()
    assert not set(batch.voxel_id[:200].tolist()) & set(batch.voxel_id[200:].tolist())
    assert sorted(set(batch.voxel_id.tolist())) == list(range(int(batch.voxel_id.max()) + 1))


def test_each_weight_switches_its_term(student: Student, batch: Batch) -> None:
    whole = ObjectivesConfig(
        semantic=SemanticConfig(weight=2.0),
        spatiotemporal=SpatioTemporalConfig(weight=1.0),
        regression=RegressionConfig(weight=0.5),
    )
    terms = pretraining(student.eval(), TEXT, whole)(batch, EARLY)
    assert set(terms) == {"semantic", "spatiotemporal", "regression"}
    alone = pretraining(student, TEXT, ObjectivesConfig())(batch, EARLY)
    assert set(alone) == {"semantic"}
    assert terms["semantic"].item() == pytest.approx(2 * alone["semantic"].item(), rel=1e-6)
    with pytest.raises(ValueError, match="every weight is 0"):
        ObjectivesConfig(semantic=SemanticConfig(weight=0.0))


def test_a_term_sets_in_when_its_share_of_the_training_is_done(
    student: Student, batch: Batch
) -> None:
    late = ObjectivesConfig(spatiotemporal=SpatioTemporalConfig(weight=2.0, start=0.5))
    terms = pretraining(student.eval(), TEXT, late)
    assert set(terms(batch, Moment(0.49, 1.0))) == {"semantic"}
    assert set(terms(batch, Moment(0.5, 1.0))) == {"semantic", "spatiotemporal"}
    with pytest.raises(ValueError, match="every weight is 0 at the start"):
        ObjectivesConfig(semantic=SemanticConfig(start=0.1))


def test_regression_teaches_the_local_head_alone(student: Student, batch: Batch) -> None:
    config = ObjectivesConfig(
        semantic=SemanticConfig(weight=0.0), regression=RegressionConfig(weight=1.0)
    )
    torch.stack(list(pretraining(student, TEXT, config)(batch, EARLY).values())).sum().backward()
    assert student.local.weight.grad is not None
    assert student.semantic.weight.grad is None


def test_without_features_the_text_of_the_class_stands_in(student: Student, batch: Batch) -> None:
    config = ObjectivesConfig(
        semantic=SemanticConfig(weight=0.0), regression=RegressionConfig(weight=1.0)
    )
    bare = replace(batch, pixel=None, pair_pixel=None)
    spelled = replace(batch, pixel=TEXT.half(), pair_pixel=batch.pair_label)
    terms = pretraining(student.eval(), TEXT, config)
    assert terms(bare, EARLY)["regression"].item() == pytest.approx(
        terms(spelled, EARLY)["regression"].item()
    )


def test_own_labels_come_after_the_warm_up_and_by_the_coin() -> None:
    config = SelfTrainingConfig(probability=0.5, start=0.5)
    assert not switched(config, 0.4, 0.1)
    assert switched(config, 0.5, 0.1)
    assert not switched(config, 0.9, 0.5)
    assert not switched(SelfTrainingConfig(), 1.0, 0.0)


def test_a_student_agrees_more_with_itself_than_with_its_teacher(
    student: Student, batch: Batch
) -> None:
    own = ObjectivesConfig(selftraining=SelfTrainingConfig(probability=1.0))
    terms = pretraining(student.eval(), TEXT, own)
    assert terms(batch, LATE)["semantic"] < terms(batch, EARLY)["semantic"]
    unsure = replace(own, selftraining=SelfTrainingConfig(probability=1.0, min_confidence=1.1))
    kept = pretraining(student, TEXT, unsure)(batch, LATE)["semantic"]
    assert kept.item() == pytest.approx(terms(batch, EARLY)["semantic"].item())


@torch.no_grad()
def test_unpaired_points_that_are_sure_add_a_term_of_their_own(
    student: Student, batch: Batch
) -> None:
    embedding = student.eval()(batch, points=None, heads=("semantic",)).semantic
    unpaired = torch.tensor(sorted({*range(len(embedding))} - {*batch.pair_point.tolist()}))
    confidence, own = (16.0 * embedding[unpaired] @ TEXT.T).softmax(1).max(1)
    sure = confidence >= confidence.median()
    expected = semantic(embedding[unpaired][sure] @ TEXT.T, own[sure], SemanticConfig())

    def value(unpaired: bool) -> float:
        config = SelfTrainingConfig(
            probability=1.0, min_confidence=confidence.median().item(), unpaired=unpaired
        )
        return pretraining(student, TEXT, ObjectivesConfig(selftraining=config))(batch, LATE)[
            "semantic"
        ].item()

    assert 0 < sure.sum() < len(sure) == 400
    assert value(True) - value(False) == pytest.approx(expected.item(), rel=1e-4)


@torch.no_grad()
def test_the_reference_recipe_gives_the_published_values(student: Student, batch: Batch) -> None:
    """The published code's formulas as literal loops in float64 on the same embeddings."""
    objectives = load_config(["pretrain/clip2scene_reference"]).objectives
    random = torch.Generator().manual_seed(1)
    student.eval().semantic.weight.mul_(100)
    student.local.weight.mul_(100)
    text = torch.nn.functional.normalize(torch.randn(4, 4, generator=random), dim=1)
    # one pair in cube 0
    voxel = torch.cat([torch.arange(50), torch.randint(1, 50, (350,), generator=random)])
    voxel = voxel[torch.randperm(400, generator=random)]
    batch = replace(batch, voxel_id=voxel)
    found = pretraining(student, text, objectives)(batch, EARLY)

    feats = student.features(batch, batch.pair_point)
    points = student.semantic(feats).tolist()
    local = student.local(feats).tolist()
    words = text.tolist()
    labels = batch.pair_label.tolist()
    entropy = 0.0
    for point, label in zip(points, labels, strict=True):
        logits = [inner(point, word) for word in words]
        entropy += math.log(sum(map(math.exp, logits))) - logits[label]
    voxels: dict[int, list[int]] = {}
    for pair, number in enumerate(voxel.tolist()):
        voxels.setdefault(number, []).append(pair)
    apart = 0.0
    for pairs in voxels.values():
        slots = [local[pair] for pair in pairs[:8]]
        attention = [math.exp(inner(slot, words[labels[pairs[0]]])) for slot in slots]
        fused = [
            sum(a * slot[k] for a, slot in zip(attention, slots, strict=True)) / sum(attention)
            for k in range(4)
        ]
        slots += [[0.0] * 4] * (8 - len(slots))
        apart += sum(1 - 1 / (1 + math.exp(-inner(slot, fused))) for slot in slots)
    expected = {"semantic": entropy / len(points), "spatiotemporal": apart / (8 * len(voxels))}

    sizes = Counter(map(len, voxels.values()))
    assert sizes[1] >= 1
    assert 5 < sum(count for size, count in sizes.items() if size > 8) < 45
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        expected, rel=1e-6
    )
    assert sum(found.values()).item() == pytest.approx(sum(expected.values()), rel=1e-6)


def inner(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))

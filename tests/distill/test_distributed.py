"""Two processes with half of every batch do what one does with all of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed

from clipsweep.distill.objectives import Moment, ObjectivesConfig, Terms, finetuning, pretraining
from clipsweep.distill.objectives.regression import RegressionConfig
from clipsweep.distill.objectives.selftraining import SelfTrainingConfig
from clipsweep.distill.objectives.semantic import SemanticConfig
from clipsweep.distill.objectives.spatiotemporal import SpatioTemporalConfig
from clipsweep.distill.student.batch import Batch, SweepSet, collate_groups
from clipsweep.distill.student.checkpoint import make_student
from clipsweep.distill.student.unet import ModelConfig, Student
from clipsweep.distill.student.voxels import Sample, voxelize
from clipsweep.distill.training.loop import Learner, NotFinite, Step, TrainConfig, train

MODEL = ModelConfig(size="tiny", voxel_m=0.5)
TEXT = torch.eye(4)
OBJECTIVES = [
    ObjectivesConfig(
        semantic=SemanticConfig(lovasz=1.0),
        spatiotemporal=SpatioTemporalConfig(weight=1.0),
        regression=RegressionConfig(weight=1.0),
        selftraining=SelfTrainingConfig(probability=1.0, start=0.5, unpaired=True),
    ),
    ObjectivesConfig(
        semantic=SemanticConfig(kind="infonce"),
        spatiotemporal=SpatioTemporalConfig(weight=1.0, mean="cubes"),
    ),
    ObjectivesConfig(
        semantic=SemanticConfig(kind="infonce_paper"),
        spatiotemporal=SpatioTemporalConfig(weight=1.0, kind="paper"),
    ),
    ObjectivesConfig(
        semantic=SemanticConfig(kind="ce_reference"),
        spatiotemporal=SpatioTemporalConfig(weight=1.0, kind="reference"),
    ),
]
STEPS = 20
CONFIG = TrainConfig(optimizer="sgd", lr=1e-5, ema=0.9)
"""A U-Net from random weights, under batch norm, makes 1e-3 of a rounding within ten steps at usual
learning rates, in
one process too; at this one the loss still falls, and roundings stay small."""


def frame(number: int) -> SweepSet:
    """A cloud with 100 pairs times its number; frame 0 has none."""
    random = np.random.default_rng(number)
    pairs = 100 * number
    sample = Sample(
        frame=f"frame-{number}",
        xyz=random.uniform(-1, 1, (400, 3)).astype(np.float32) * np.array([20, 20, 4], np.float32),
        intensity=np.ones(400, np.float32),
        age_s=np.zeros(400, np.float32),
        pair_point=np.arange(pairs),
        pair_label=random.integers(0, 4, pairs),
        pair_pixel=random.integers(0, 30, pairs),
        voxel_id=random.integers(0, 20, pairs),
    )
    voxels = voxelize(
        sample,
        voxel_m=MODEL.voxel_m,
        features=MODEL.features,
        reduce=MODEL.reduce,
        sensor_height_m=0.0,
    )
    feature = random.normal(size=(30, 4))
    return SweepSet(
        [voxels], (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float16)
    )


def part(numbers: Sequence[int]) -> Batch:
    """This process's frames of a batch."""
    rank, ranks = (distributed.get_rank(), 2) if distributed.is_initialized() else (0, 1)
    return collate_groups([frame(number) for number in numbers[rank::ranks]])


def new_student(classes: int | None = None) -> Student:
    torch.manual_seed(0)
    return make_student(MODEL, 4, classes)


def learn() -> dict[str, list[float]]:
    """Losses of a training, and the sums of terms and of squared gradients of one batch under
    each objective.
    """
    steps: list[Step] = []
    learner = Learner(new_student(), CONFIG)
    order = np.random.default_rng(0).permuted(np.tile(np.arange(4), (STEPS, 1)), axis=1)
    train(
        learner,
        pretraining(learner.student, TEXT, OBJECTIVES[0]),
        map(part, order),
        STEPS,
        CONFIG,
        steps.append,
    )
    found = {"losses": [step.loss for step in steps], "points": [step.points for step in steps]}
    ends = learner.average or {}
    found["average"] = [float(value.double().square().sum()) for value in ends.values()]
    for number, objectives in enumerate([*OBJECTIVES, None]):
        learner = Learner(new_student(4), CONFIG)
        student = learner.student
        terms = (
            finetuning(student, ObjectivesConfig())
            if objectives is None
            else pretraining(student, TEXT, objectives)
        )
        found[f"gradients {number}"] = gradients(learner, terms)
    return found


def gradients(learner: Learner, terms: Terms) -> list[float]:
    seen: list[float] = []

    def note(step: Step) -> None:
        seen.append(step.loss)
        parameters = learner.student.parameters()
        seen.extend(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None)

    config = TrainConfig(clip_norm=0.0)
    train(learner, terms, [part([0, 3, 1, 2])], 1, config, note)
    return seen


def one_of_two(rank: int, folder: Path) -> None:
    """One of the processes of the next test."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    torch.save(learn(), folder / f"{rank}.pt")
    (folder / f"{rank}.txt").write_text(message_of_nan(rank))
    distributed.destroy_process_group()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], (
        "something holds the group: its threads abort the process"
    )


def message_of_nan(rank: int) -> str:
    """The message when one process alone has a loss that is not finite."""
    learner = Learner(new_student(), TrainConfig())

    def terms(batch: Batch, moment: Moment) -> dict[str, torch.Tensor]:
        return {"semantic": learner.student.semantic.weight.sum() * (torch.nan if rank else 1.0)}

    with pytest.raises(NotFinite) as raised:
        train(learner, terms, [part([1, 2])], 1, TrainConfig(), lambda step: None)
    return str(raised.value)


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    one = learn()
    both = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert both[0] == both[1]
    np.testing.assert_allclose(both[0]["losses"], one["losses"], rtol=1e-5)
    assert both[0]["points"] == one["points"]
    assert len(one["losses"]) == STEPS
    assert one["losses"][-1] < 0.99 * one["losses"][0]
    for name in one:
        np.testing.assert_allclose(
            both[0][name], one[name], rtol=1e-3 if name == "average" else 1e-4, atol=1e-9
        )
    for rank in range(2):
        assert "frames frame-1, frame-2" in (tmp_path / f"{rank}.txt").read_text()

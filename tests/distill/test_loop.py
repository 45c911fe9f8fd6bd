"""The training loop, its schedule, and students on disk."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipsweep.distill.objectives import (
    Moment,
    ObjectivesConfig,
    Terms,
    finetuning,
    pretraining,
)
from clipsweep.distill.objectives.regression import RegressionConfig
from clipsweep.distill.objectives.selftraining import SelfTrainingConfig
from clipsweep.distill.objectives.semantic import SemanticConfig
from clipsweep.distill.objectives.spatiotemporal import SpatioTemporalConfig
from clipsweep.distill.student.augment import AugmentConfig, augment
from clipsweep.distill.student.batch import Batch, collate
from clipsweep.distill.student.checkpoint import (
    learner_bytes,
    load_learner,
    load_student,
    make_student,
    student_bytes,
    student_config,
)
from clipsweep.distill.student.unet import ModelConfig, Student
from clipsweep.distill.student.voxels import Sample, voxelize
from clipsweep.distill.training.loop import (
    Learner,
    NotFinite,
    Step,
    TrainConfig,
    make_optimizer,
    rates,
    train,
)
from clipsweep.projection.errors import BadInput

MODEL = ModelConfig(size="tiny", voxel_m=0.5)
TEXT = torch.eye(3)


def batches(count: int) -> Iterator[Batch]:
    """Points in three layers, each a class of its own."""
    random = np.random.default_rng(0)
    for number in range(count):
        xyz = random.uniform(-4, 4, (300, 3)).astype(np.float32)
        label = np.digitize(xyz[:, 2], [-1.5, 1.5]).astype(np.int64)
        ones = np.ones(300, np.float32)
        sample = Sample(f"frame-{number}", xyz, ones, 0 * ones, np.arange(300), label)
        settings = {"features": MODEL.features, "reduce": MODEL.reduce, "sensor_height_m": 0.0}
        yield collate([voxelize(sample, voxel_m=MODEL.voxel_m, **settings)])


OWN = ObjectivesConfig(selftraining=SelfTrainingConfig(probability=0.5, start=0.3))


def run(
    student: Student,
    config: TrainConfig,
    count: int = 4,
    terms: Terms | None = None,
    learner: Learner | None = None,
) -> list[Step]:
    steps: list[Step] = []
    stream = (batch for _ in range(config.epochs) for batch in batches(count))
    learner = learner or Learner(student, config)
    terms = terms or pretraining(student, TEXT, ObjectivesConfig())
    train(learner, terms, stream, config.epochs * count // config.accumulate, config, steps.append)
    return steps


def student() -> Student:
    torch.manual_seed(0)
    return make_student(MODEL, 3)


def weights(student: Student) -> list[torch.Tensor]:
    return [value.clone() for value in student.state_dict().values()]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_it_learns(optimizer: str) -> None:
    torch.manual_seed(0)
    lr = {"adamw": 3e-3, "sgd": 0.05}[optimizer]
    steps = run(make_student(MODEL, 3), TrainConfig(epochs=8, optimizer=optimizer, lr=lr))
    assert [step.step for step in steps] == list(range(1, 33))
    assert steps[-1].loss < 0.5 * steps[0].loss
    assert steps[-1].terms["semantic"] == pytest.approx(steps[-1].loss)


def test_same_seed_same_bytes() -> None:
    def trained() -> bytes:
        torch.manual_seed(3)
        student = make_student(MODEL, 3)
        run(student, TrainConfig(epochs=2))
        return student_bytes(student, TEXT)

    assert trained() == trained()


def test_cosine_rises_and_falls() -> None:
    lr = [rates(step, 100, TrainConfig(lr=1.0)).lr for step in range(100)]
    assert lr[0] == pytest.approx(0.1)
    assert max(lr) == pytest.approx(1.0)
    assert lr.index(max(lr)) in (9, 10)
    assert lr[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(lr[10:]))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_cycle_is_pytorchs(optimizer: str) -> None:
    config = TrainConfig(schedule="one_cycle", lr=0.5, warmup=0.3, optimizer=optimizer)
    theirs = make_optimizer(nn.Linear(1, 1), config)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.5, total_steps=20, pct_start=0.3)
    for step in range(20):
        group = theirs.param_groups[0]
        ours = rates(step, 20, config)
        assert ours.lr == pytest.approx(group["lr"])
        assert ours.momentum == pytest.approx(
            group["betas"][0] if optimizer == "adamw" else group["momentum"]
        )
        theirs.step()
        if step < 19:
            scheduler.step()


def test_rates_reach_the_optimiser() -> None:
    config = TrainConfig(schedule="one_cycle", epochs=1, lr=1e-3)
    learner = Learner(student(), config, head="semantic", head_lr=10.0)
    run(learner.student, config, learner=learner)
    last = rates(3, 4, config)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx(
        [last.lr] * 2 + [10 * last.lr] * 2
    )
    assert {group["betas"] for group in learner.optimizer.param_groups} == {(last.momentum, 0.999)}


def spoiled(student: Student, *steps: int, gradient: bool = False) -> Terms:
    """A loss that is nan, or has a gradient that is, at some calls."""
    calls = iter(range(1000))
    inner = pretraining(student, TEXT, ObjectivesConfig())

    def terms(batch: Batch, moment: Moment) -> dict[str, torch.Tensor]:
        value = inner(batch, moment)["semantic"]
        if next(calls) in steps:
            # 0, with slope inf * 0
            wrong = torch.sqrt(value.detach() * 0 * student.semantic.weight.abs().sum())
            value = value + (wrong if gradient else torch.nan)
        return {"semantic": value}

    return terms


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_what_is_not_finite_names_the_frames(gradient: bool) -> None:
    network = student()
    with pytest.raises(NotFinite, match=r"step 3: .*nan, frames frame-2, and 0 such"):
        run(network, TrainConfig(epochs=1), terms=spoiled(network, 2, gradient=gradient))


@pytest.mark.parametrize("gradient", [False, True], ids=["loss", "gradient"])
def test_a_bad_step_leaves_nothing_behind(gradient: bool) -> None:
    network = student()
    config = TrainConfig(epochs=1, max_bad_steps=1, ema=0.9)
    before = weights(network)
    learner = Learner(network, config)
    assert run(network, config, 1, spoiled(network, 0, gradient=gradient), learner) == []
    assert (learner.step, learner.bad) == (1, 1)
    assert same(weights(network), before)
    with pytest.raises(NotFinite, match="and 1 such steps are allowed"):
        run(network, config, 4, spoiled(network, 1), learner)


def test_accumulated_batches_are_a_mean() -> None:
    """Of gradients: with plain SGD a step over two batches is the mean of a step over each."""
    ends = []
    plain = TrainConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, lr=0.1, clip_norm=0.0)
    for chosen in ([0], [1], [0, 1]):
        network = student().requires_grad_(False)
        network.semantic.requires_grad_()  # the rest stands still, so its norms do
        config = replace(plain, accumulate=len(chosen))
        stream = [batch for number, batch in enumerate(batches(2)) if number in chosen]
        steps: list[Step] = []
        train(
            Learner(network, config),
            pretraining(network, TEXT, ObjectivesConfig()),
            stream,
            1,
            config,
            steps.append,
        )
        ends.append(network.semantic.weight.detach())
        assert steps[0].points == 300 * len(chosen)
    torch.testing.assert_close(ends[2], (ends[0] + ends[1]) / 2)
    assert not torch.equal(ends[0], ends[1])


def test_the_mean_of_weights_is_what_is_kept() -> None:
    network = student()
    config = TrainConfig(epochs=1, ema=0.5)
    learner = Learner(network, config)
    seen = [weights(network)]
    train(
        learner,
        pretraining(network, TEXT, OWN),
        batches(3),
        3,
        config,
        lambda step: seen.append(weights(network)),
    )
    mean = seen[0]
    for number, later in enumerate(seen[1:]):
        decay = min(0.5, (1 + number) / (10 + number))
        mean = [
            decay * a + (1 - decay) * b if b.is_floating_point() else b
            for a, b in zip(mean, later, strict=True)
        ]
    learner.keep_average()
    for ours, wanted in zip(weights(network), mean, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(tmp_path: Path, optimizer: str) -> None:
    config = TrainConfig(
        optimizer=optimizer, ema=0.9, accumulate=2, schedule="one_cycle", max_bad_steps=1
    )
    kept: dict[int, bytes] = {}

    def end(learner: Learner) -> bytes:
        stream = islice(batches(8), 2 * learner.step, None)
        terms = pretraining(learner.student, TEXT, OWN)
        train(
            learner,
            terms,
            stream,
            4,
            config,
            lambda step: kept.setdefault(step.step, learner_bytes(learner)),
        )
        return learner_bytes(learner)

    whole = end(Learner(student(), config))
    for stop in (1, 3):
        (tmp_path / "state").write_bytes(kept[stop])
        resumed = Learner(make_student(MODEL, 3), config)
        load_learner(resumed, tmp_path / "state")
        assert resumed.step == stop
        assert end(resumed) == whole


def test_gradients_that_are_never_finite_end_a_training_in_fp16() -> None:
    config = TrainConfig(precision="fp16")
    learner = Learner(student(), TrainConfig(precision="fp16"))

    def terms(batch: Batch, moment: Moment) -> dict[str, torch.Tensor]:
        # 0, with a slope of 0 / 0
        return {"semantic": (learner.student.semantic.weight.sum() * 0.0).sqrt()}

    # the scale starts at 2 ** 16
    with pytest.raises(NotFinite, match=r"step 18: the gradient's norm is nan"):
        train(learner, terms, batches(20), 20, config, lambda step: None)


def test_bf16_is_refused_where_spconv_would_take_16_bits_of_another_kind() -> None:
    with pytest.raises(BadInput, match="bf16, which spconv lacks"):
        Learner(make_student(replace(MODEL, backend="spconv"), 3), TrainConfig(precision="bf16"))


def test_training_halts_after_a_step() -> None:
    learner = Learner(student(), TrainConfig())
    terms = pretraining(learner.student, TEXT, ObjectivesConfig())
    train(
        learner,
        terms,
        batches(4),
        4,
        TrainConfig(),
        lambda step: None,
        halt=lambda: learner.step == 2,
    )
    assert learner.step == 2


@pytest.mark.parametrize(
    ("semantic", "kind"),
    [
        (SemanticConfig(lovasz=1.0), "ours"),
        (SemanticConfig(kind="infonce"), "paper"),
        (SemanticConfig(kind="infonce_mean"), "reference"),
        (SemanticConfig(kind="infonce_paper"), "ours"),
        (SemanticConfig(kind="ce_reference"), "reference"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_without_pairs_the_loss_is_zero(semantic: SemanticConfig, kind: str) -> None:
    objectives = ObjectivesConfig(
        semantic=semantic,
        spatiotemporal=SpatioTemporalConfig(weight=1.0, kind=kind),
        regression=RegressionConfig(weight=1.0),
        selftraining=SelfTrainingConfig(probability=1.0, start=0.5),
    )
    none = torch.empty(0, dtype=torch.int64)
    empty = {"pair_point": none, "pair_label": none, "voxel_id": none}
    stream = (replace(batch, **empty) for batch in batches(2))
    network = student()
    config = TrainConfig(weight_decay=0.0)
    before = [p.clone() for p in network.parameters()]
    steps = []
    train(
        Learner(network, config),
        pretraining(network, TEXT, objectives),
        stream,
        2,
        config,
        steps.append,
    )
    assert [step.loss for step in steps] == [0.0, 0.0]
    assert same([p.detach() for p in network.parameters()], before)
    assert all(torch.isfinite(value).all() for value in weights(network))


def test_vectors_are_not_decayed() -> None:
    matrices, vectors = make_optimizer(make_student(MODEL, 3), TrainConfig()).param_groups
    assert vectors["weight_decay"] == 0 < matrices["weight_decay"]
    assert all(p.ndim <= 1 for p in vectors["params"])


def write(folder: Path, student: Student) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(
        student_config(student, MODEL, ("low", "middle", "high"), 1.8, 8.0, False)
    )
    (folder / "model.safetensors").write_bytes(student_bytes(student, TEXT))


def test_a_student_comes_back_from_disk(tmp_path: Path) -> None:
    student = make_student(MODEL, 3)
    run(student, TrainConfig(epochs=1))
    student.text_head = "local"
    write(tmp_path, student)
    trained = load_student(tmp_path)
    batch = next(batches(1))
    assert trained.names == ("low", "middle", "high")
    assert (trained.model, trained.sensor_height_m, trained.used_labels) == (MODEL, 1.8, False)
    assert trained.scale == 8.0
    assert torch.equal(
        trained.student.classify(batch, trained.text), student.eval().classify(batch, TEXT)
    )


def test_a_student_predicts_every_point(tmp_path: Path) -> None:
    student = make_student(replace(MODEL, max_voxels=10), 3)
    run(student, TrainConfig(epochs=3))
    write(tmp_path, student)
    trained = load_student(str(tmp_path))
    random = np.random.default_rng(0)
    xyz = random.uniform(-20, 20, (500, 3)).astype(np.float32)
    intensity = random.random(500, np.float32)
    label = trained.predict(xyz, intensity)
    assert label.shape == (500,)
    assert len(np.unique(label)) > 1
    order = random.permutation(500)
    assert np.array_equal(trained.predict(xyz[order], intensity[order]), label[order])
    assert trained.predict(xyz[:0], intensity[:0]).shape == (0,)
    for bad, why in (
        ((np.full((1, 3), np.nan), intensity[:1]), "finite"),
        ((xyz, np.full(500, np.nan)), "finite"),
        ((xyz, intensity[:9]), r"\(n, 3\)"),
        ((np.zeros((500, 4)), intensity), r"\(n, 3\)"),
    ):
        with pytest.raises(ValueError, match=why):
            trained.predict(*bad)
    for height_m in (np.nan, np.inf, -1.0):
        with pytest.raises(ValueError, match=f"sensor_height_m={height_m} is none of 0 to 100 m"):
            trained.predict(xyz, intensity, sensor_height_m=height_m)
    assert np.array_equal(trained.predict(xyz.astype(float), intensity.astype(float)), label)
    assert np.array_equal(trained.predict(xyz, intensity, origin=np.zeros_like(xyz)), label)
    with pytest.raises(ValueError, match="origins must be"):
        trained.predict(xyz, intensity, origin=np.zeros((1, 3)))


def test_a_student_is_found_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, make_student(MODEL, 3))

    def cached(repository: str, name: str, local_files_only: bool) -> str:
        assert (repository, local_files_only) == ("me/student", True)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert load_student("me/student").names == ("low", "middle", "high")


def test_classes_are_the_nearest_text(tmp_path: Path) -> None:
    student = make_student(MODEL, 3).eval()
    batch = next(batches(1))
    embedding = student(batch, heads=("semantic",)).semantic
    assert embedding is not None
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)))
    text = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    assert torch.equal(
        student.classify(batch, text), (embedding @ text.T).argmax(1).to(torch.uint8)
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("names", None),
        ("names", ["low"]),
        ("model.voxel_m", -1),
        ("model.reduce", "zz"),
        ("model.backend", "evil"),
    ],
)
def test_a_config_that_would_fail_in_use_is_refused(
    tmp_path: Path, key: str, value: object
) -> None:
    write(tmp_path, make_student(MODEL, 3))
    tree = json.loads((tmp_path / "config.json").read_text())
    part = tree["model"] if key.startswith("model.") else tree
    part[key.removeprefix("model.")] = value
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(BadInput, match="no readable student"):
        load_student(tmp_path)


@pytest.mark.parametrize("damage", ["no config", "cut", "other size", "not json"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, make_student(MODEL, 3))
    config = tmp_path / "config.json"
    weights = tmp_path / "model.safetensors"
    if damage == "no config":
        config.unlink()
    elif damage == "not json":
        config.write_text("{")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        tree = json.loads(config.read_text())
        tree["model"]["size"] = "unet14"
        config.write_text(json.dumps(tree))
    with pytest.raises(BadInput, match=str(tmp_path)):
        load_student(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rubbish", "training state"),
        ("optimizer", "state of AdamW"),
        ("network", "do not fit the network"),
    ],
)
def test_a_wrong_training_state_is_refused(tmp_path: Path, wrong: str, message: str) -> None:
    path = tmp_path / "state.safetensors"
    optimizer = "sgd" if wrong == "optimizer" else "adamw"
    path.write_bytes(
        b"rubbish" if wrong == "rubbish" else learner_bytes(Learner(student(), TrainConfig()))
    )
    network = make_student(MODEL, 4) if wrong == "network" else student()
    with pytest.raises(BadInput, match=message):
        load_learner(Learner(network, TrainConfig(optimizer=optimizer)), path)


def test_the_scale_of_fp16_comes_back(tmp_path: Path) -> None:
    one, two = (Learner(student(), TrainConfig(precision="fp16")) for _ in range(2))
    one.scaler.scale(torch.ones(()))
    one.scaler.update(512.0)
    (tmp_path / "state").write_bytes(learner_bytes(one))
    load_learner(two, tmp_path / "state")
    assert two.scaler.get_scale() == 512.0


def test_augmentation_keeps_shape_and_the_ground_level() -> None:
    xyz = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    moved = augment(xyz, AugmentConfig(), np.random.default_rng(1))
    scale = np.linalg.norm(moved, axis=1) / np.linalg.norm(xyz, axis=1)
    np.testing.assert_allclose(scale, scale[0], rtol=1e-5)
    np.testing.assert_allclose(moved[:, 2], xyz[:, 2] * scale[0], rtol=1e-4)
    assert 0.95 <= scale[0] <= 1.05
    still = augment(
        xyz, AugmentConfig(rotate_deg=0.0, flip=False, scale=0.0), np.random.default_rng(1)
    )
    np.testing.assert_allclose(still, xyz)


def test_probabilities_are_the_mean_over_turned_copies(tmp_path: Path) -> None:
    student = make_student(MODEL, 3)
    run(student, TrainConfig(epochs=2))
    write(tmp_path, student)
    trained = load_student(tmp_path)
    random = np.random.default_rng(0)
    xyz = random.uniform(-20, 20, (300, 3)).astype(np.float32)
    intensity = random.random(300, np.float32)
    single = trained.probabilities(xyz, intensity)
    np.testing.assert_allclose(single.sum(1), 1, atol=1e-5)
    assert np.array_equal(single.argmax(1), trained.predict(xyz, intensity))
    x, y, z = xyz.T
    copies = [  # quarter turns, every second one of the cloud with y mirrored
        np.column_stack([x, y, z]),
        np.column_stack([y, x, z]),
        np.column_stack([-x, -y, z]),
        np.column_stack([-y, -x, z]),
    ]
    expected = np.mean([trained.probabilities(copy, intensity) for copy in copies], axis=0)
    # a turn is rounded, and a few points may change their voxel
    close = np.isclose(trained.probabilities(xyz, intensity, views=4), expected, atol=1e-4)
    assert close.all(axis=1).mean() > 0.98
    assert trained.probabilities(xyz[:0], intensity[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match="views=0"):
        trained.probabilities(xyz, intensity, views=0)


def test_probabilities_use_the_scale_of_the_training() -> None:
    student = make_student(MODEL, 3).eval()
    batch = next(batches(1))
    cosine = student(batch, heads=("semantic",)).semantic @ TEXT.T
    torch.testing.assert_close(
        student.probabilities(batch, TEXT, 8.0), (8.0 * cosine).softmax(1), atol=1e-5, rtol=1e-4
    )


def test_frozen_norms_keep_their_statistics() -> None:
    def trained(frozen: bool) -> tuple[Student, Student]:
        student = make_student(MODEL, 3, 3)
        before = copy.deepcopy(student)
        config = TrainConfig()
        learner = Learner(student, config, frozen_norms=frozen)
        terms = finetuning(student, ObjectivesConfig())
        train(learner, terms, batches(2), 2, config, lambda step: None)
        return before, student

    before, after = trained(frozen=True)
    assert same(list(after.buffers()), list(before.buffers()))
    assert not same([p.detach() for p in after.parameters()], list(before.parameters()))
    before, after = trained(frozen=False)
    assert not same(list(after.buffers()), list(before.buffers()))


def test_a_step_adds_the_loss_of_a_batch_with_pseudo_labels() -> None:
    def loss(stream: list[Batch], kinds: int, weight: float) -> Step:
        torch.manual_seed(0)
        student = make_student(MODEL, 3, 3)
        config = TrainConfig(lr=0.0)
        steps: list[Step] = []
        terms = finetuning(student, ObjectivesConfig(), weight)
        learner = Learner(student, config, frozen_norms=True)
        train(learner, terms, stream, 1, config, steps.append, kinds=kinds)
        return steps[0]

    one, other = batches(2)
    alone = loss([one], 1, 0.0)
    beside = loss([other], 1, 0.0)
    both = loss([one, replace(other, unlabelled=True)], 2, 0.25)
    assert both.loss == pytest.approx(alone.loss + 0.25 * beside.loss, rel=1e-5)
    assert both.points == alone.points + beside.points
    assert set(both.terms) == {
        *("cross_entropy", "lovasz", "unlabelled cross_entropy", "unlabelled lovasz")
    }

"""The training loop, its schedule, and students on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.augment import AugmentConfig, augment
from distill.batch import Batch, Sample, collate, voxelise
from distill.checkpoint import (
    load_optimizer,
    load_student,
    make_student,
    optimizer_bytes,
    student_bytes,
    student_config,
)
from distill.objectives import ObjectivesConfig, Terms, pretraining
from distill.student import ModelConfig, Student
from distill.train import NotFinite, Step, TrainConfig, learning_rate, make_optimizer, train
from projection.errors import BadInput

MODEL = ModelConfig(size="tiny", voxel_m=0.5)
TEXT = torch.eye(3)


def batches(count: int) -> Iterator[Batch]:
    """Points in three layers, each a class of its own."""
    random = np.random.default_rng(0)
    for number in range(count):
        xyz = random.uniform(-4, 4, (300, 3)).astype(np.float32)
        label = np.digitize(xyz[:, 2], [-1.5, 1.5]).astype(np.int64)
        ones = np.ones(300, np.float32)
        sample = Sample(f"frame-{number}", xyz, ones, 0 * ones, np.arange(300), label, ones)
        settings = {"features": MODEL.features, "reduce": MODEL.reduce, "sensor_height_m": 0.0}
        yield collate([voxelise(sample, voxel_m=MODEL.voxel_m, **settings)])


def terms(student: Student) -> Terms:
    return pretraining(student, TEXT, ObjectivesConfig())


def run(student: Student, config: TrainConfig, count: int = 4) -> list[Step]:
    steps: list[Step] = []
    stream = (batch for _ in range(config.epochs) for batch in batches(count))
    optimizer = make_optimizer(student, config)
    train(student, terms(student), stream, count, config, optimizer, steps.append, lambda epoch: None)
    return steps


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


def test_schedule_rises_and_falls() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates.index(max(rates)) in (9, 10)
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_a_loss_that_is_not_finite_names_the_frames() -> None:
    student = make_student(MODEL, 3)
    with torch.no_grad():
        student.semantic.weight.fill_(torch.nan)
    with pytest.raises(NotFinite, match="frame-0"):
        run(student, TrainConfig(epochs=1))


def test_vectors_are_not_decayed() -> None:
    matrices, vectors = make_optimizer(make_student(MODEL, 3), TrainConfig()).param_groups
    assert vectors["weight_decay"] == 0 < matrices["weight_decay"]
    assert all(p.ndim <= 1 for p in vectors["params"])


def write(folder: Path, student: Student) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(student_config(MODEL, ("low", "middle", "high"), 1.8, False))
    (folder / "model.safetensors").write_bytes(student_bytes(student, TEXT))


def test_a_student_comes_back_from_disk(tmp_path: Path) -> None:
    student = make_student(MODEL, 3)
    run(student, TrainConfig(epochs=1))
    write(tmp_path, student)
    trained = load_student(tmp_path)
    batch = next(batches(1))
    assert trained.names == ("low", "middle", "high")
    assert (trained.model, trained.sensor_height_m, trained.used_labels) == (MODEL, 1.8, False)
    assert torch.equal(trained.student.classify(batch, trained.text), student.eval().classify(batch, TEXT))


def test_a_student_predicts_every_point(tmp_path: Path) -> None:
    student = make_student(replace(MODEL, max_voxels=10), 3)
    run(student, TrainConfig(epochs=3))
    write(tmp_path, student)
    trained = load_student(str(tmp_path))
    random = np.random.default_rng(0)
    xyz, intensity = random.uniform(-20, 20, (500, 3)).astype(np.float32), random.random(500, np.float32)
    label = trained.predict(xyz, intensity)
    assert label.shape == (500,)
    assert len(np.unique(label)) > 1
    order = random.permutation(500)
    assert np.array_equal(trained.predict(xyz[order], intensity[order]), label[order])
    assert trained.predict(xyz[:0], intensity[:0]).shape == (0,)
    with pytest.raises(ValueError, match="finite"):
        trained.predict(np.full((1, 3), np.nan, np.float32), intensity[:1])


def test_a_student_is_found_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, make_student(MODEL, 3))

    def cached(repository: str, name: str, local_files_only: bool) -> str:
        assert (repository, local_files_only) == ("me/student", True)
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert load_student("me/student").names == ("low", "middle", "high")


def test_classes_are_the_nearest_text(tmp_path: Path) -> None:
    student, batch = make_student(MODEL, 3).eval(), next(batches(1))
    said = student(batch, heads=("semantic",)).semantic
    assert said is not None
    torch.testing.assert_close(said.norm(dim=1), torch.ones(len(said)))
    text = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    assert torch.equal(student.classify(batch, text), (said @ text.T).argmax(1).to(torch.uint8))


@pytest.mark.parametrize("damage", ["no config", "cut", "other size", "not json"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, make_student(MODEL, 3))
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
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


def test_optimizer_state_comes_back(tmp_path: Path) -> None:
    student, config = make_student(MODEL, 3), TrainConfig(epochs=1)
    optimizer = make_optimizer(student, config)
    stream = batches(2)
    train(student, terms(student), stream, 2, config, optimizer, lambda step: None, lambda epoch: None)
    path = tmp_path / "state.safetensors"
    path.write_bytes(optimizer_bytes(optimizer, 7))
    fresh = make_optimizer(student, config)
    assert load_optimizer(fresh, path) == 7
    saved, restored = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert saved.keys() == restored.keys()
    assert all(torch.equal(saved[i][name], restored[i][name]) for i in saved for name in saved[i])
    path.write_bytes(b"rubbish")
    with pytest.raises(BadInput, match="training state"):
        load_optimizer(fresh, path)


def test_augmentation_keeps_shape_and_the_ground_level() -> None:
    xyz = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    moved = augment(xyz, AugmentConfig(), np.random.default_rng(1))
    scale = np.linalg.norm(moved, axis=1) / np.linalg.norm(xyz, axis=1)
    np.testing.assert_allclose(scale, scale[0], rtol=1e-5)
    np.testing.assert_allclose(moved[:, 2], xyz[:, 2] * scale[0], rtol=1e-4)
    assert 0.95 <= scale[0] <= 1.05
    still = augment(xyz, AugmentConfig(rotate_deg=0.0, flip=False, scale=0.0), np.random.default_rng(1))
    np.testing.assert_allclose(still, xyz)

"""Objectives against literal loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from clipsweep.distill.objectives.regression import regression
from clipsweep.distill.objectives.semantic import SemanticConfig, semantic

M = 30
C = 5
D = 8


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(M, D, generator=g), dim=1)
    text = F.normalize(torch.randn(C, D, generator=g), dim=1)
    label = torch.randint(0, C - 1, (M,), generator=g)  # class C-1 is absent
    return points, label, text


def inner(a: list, b: list) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def loop_infonce(points: list, label: list, text: list, tau: float, kind: str) -> float:
    dot = [[inner(p, t) for t in text] for p in points]
    total = 0.0
    for c in set(label):
        own = [math.exp(dot[i][c] / tau) for i in range(len(points)) if label[i] == c]
        others = [math.exp(dot[i][c] / tau) for i in range(len(points)) if label[i] != c]
        against = sum(others) if kind == "infonce_paper" else sum(own) + sum(others)
        if kind == "infonce_mean":
            total += sum(-math.log(value / against) for value in own) / len(own)
        else:
            total += -math.log(sum(own) / against)
    return total


def loop_ce(points: list, label: list, text: list, scale: float) -> float:
    total = 0.0
    for p, y in zip(points, label, strict=True):
        logits = [scale * inner(p, t) for t in text]
        total += -logits[y] + math.log(sum(math.exp(value) for value in logits))
    return total / len(points)


@pytest.mark.parametrize("kind", ["infonce", "infonce_mean", "infonce_paper", "ce", "ce_reference"])
def test_equals_the_loop(case: tuple, kind: str) -> None:
    points, label, text = case
    if kind == "ce_reference":
        points = 3.0 * points  # not unit: as they come
    config = SemanticConfig(kind=kind, tau=0.5, scale=16.0)
    lists = points.double().tolist(), label.tolist(), text.double().tolist()
    if kind.startswith("infonce"):
        wanted = loop_infonce(*lists, 0.5, kind)
    else:
        wanted = loop_ce(*lists, 16.0 if kind == "ce" else 1.0)
    assert semantic(points.double() @ text.double().T, label, config).item() == pytest.approx(
        wanted, rel=1e-6
    )


@pytest.mark.parametrize("kind", ["infonce", "infonce_mean", "ce"])
def test_descent_brings_points_to_their_class(case: tuple, kind: str) -> None:
    points, label, text = case
    free = points.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        semantic(F.normalize(free, dim=1) @ text.T, label, SemanticConfig(kind=kind)).backward()
        optimizer.step()
    assert ((F.normalize(free.detach(), dim=1) @ text.T).argmax(1) == label).float().mean() > 0.9


def test_without_labels_it_is_zero_with_a_gradient() -> None:
    points = torch.zeros(0, D, requires_grad=True)
    label = torch.zeros(0, dtype=torch.int64)
    loss = semantic(points @ torch.eye(D)[:C].T, label, SemanticConfig())
    loss.backward()
    assert loss.item() == 0
    assert points.grad is not None


def test_paper_infonce_of_one_class_alone_has_nothing_to_say(case: tuple) -> None:
    points, label, text = case
    loss = semantic(points @ text.T, torch.zeros_like(label), SemanticConfig(kind="infonce_paper"))
    assert loss.item() == 0


def test_regression_is_the_mean_distance(case: tuple) -> None:
    points, _, _ = case
    pixel = points.flip(0)
    wanted = sum(math.dist(p, x) for p, x in zip(points.tolist(), pixel.tolist(), strict=True)) / M
    assert regression(points, pixel).item() == pytest.approx(wanted, rel=1e-6)
    assert regression(points[:0], pixel[:0]).item() == 0

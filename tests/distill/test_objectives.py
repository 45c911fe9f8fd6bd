"""Objectives against literal loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from distill.objectives.semantic import SemanticConfig, semantic

M, C, D = 30, 5, 8


@pytest.fixture
def case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(M, D, generator=g), dim=1)
    text = F.normalize(torch.randn(C, D, generator=g), dim=1)
    label = torch.randint(0, C - 1, (M,), generator=g)  # class C-1 is absent
    return points, label, text


def loop_infonce(points: list, label: list, text: list, tau: float) -> float:
    dot = [[sum(a * b for a, b in zip(p, t, strict=True)) for t in text] for p in points]
    total = 0.0
    for c in set(label):
        positives = sum(math.exp(dot[i][c] / tau) for i in range(len(points)) if label[i] == c)
        everyone = sum(math.exp(dot[i][c] / tau) for i in range(len(points)))
        total += -math.log(positives / everyone)
    return total


def loop_ce(points: list, label: list, text: list, scale: float) -> float:
    total = 0.0
    for p, y in zip(points, label, strict=True):
        logits = [scale * sum(a * b for a, b in zip(p, t, strict=True)) for t in text]
        total += -logits[y] + math.log(sum(math.exp(value) for value in logits))
    return total / len(points)


@pytest.mark.parametrize("kind", ["infonce", "ce"])
def test_equals_the_loop(case: tuple, kind: str) -> None:
    points, label, text = case
    config = SemanticConfig(kind=kind, tau=0.5, scale=16.0)
    lists = points.double().tolist(), label.tolist(), text.double().tolist()
    wanted = loop_infonce(*lists, 0.5) if kind == "infonce" else loop_ce(*lists, 16.0)
    assert semantic(points, label, text, config).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("kind", ["infonce", "ce"])
def test_descent_brings_points_to_their_class(case: tuple, kind: str) -> None:
    points, label, text = case
    free = points.clone().requires_grad_()
    optimizer = torch.optim.Adam([free], 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        semantic(F.normalize(free, dim=1), label, text, SemanticConfig(kind=kind)).backward()
        optimizer.step()
    assert ((F.normalize(free.detach(), dim=1) @ text.T).argmax(1) == label).float().mean() > 0.9


def test_without_labels_it_is_zero_with_a_gradient() -> None:
    points = torch.zeros(0, D, requires_grad=True)
    loss = semantic(points, torch.zeros(0, dtype=torch.int64), torch.eye(D)[:C], SemanticConfig())
    loss.backward()
    assert loss.item() == 0
    assert points.grad is not None

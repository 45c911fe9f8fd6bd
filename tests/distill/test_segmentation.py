"""Lovasz-softmax against the definition, set by set, and its meaning."""

from __future__ import annotations

import pytest
import torch

from clipsweep.distill.objectives.segmentation import (
    SegmentationConfig,
    lovasz_softmax,
    segmentation,
)


def literal(probability: list, label: list) -> float:
    """Berman et al. 2018, eq. 9.

    The Jaccard loss of growing sets of wrong points, class by class.
    """
    total = 0.0
    present = sorted(set(label))
    for c in present:
        truth = {i for i, y in enumerate(label) if y == c}
        error = [abs((y == c) - p[c]) for p, y in zip(probability, label, strict=True)]
        order = sorted(range(len(label)), key=lambda i: -error[i])

        def jaccard(wrong: set, truth: set = truth) -> float:
            predicted = (truth - wrong) | (wrong - truth)
            return 1 - len(truth & predicted) / len(truth | predicted)

        for k, i in enumerate(order):
            total += error[i] * (jaccard(set(order[: k + 1])) - jaccard(set(order[:k])))
    return total / len(present)


def test_equals_the_definition() -> None:
    g = torch.Generator().manual_seed(0)
    probability = torch.randn(25, 4, generator=g, dtype=torch.float64).softmax(1)
    label = torch.randint(0, 3, (25,), generator=g)
    wanted = literal(probability.tolist(), label.tolist())
    assert lovasz_softmax(probability, label).item() == pytest.approx(wanted, rel=1e-9)


def by_autograd(probability: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The loss in plain torch, its gradient by automatic differentiation."""
    terms = []
    for c in label.unique().tolist():
        truth = (label == c).to(probability.dtype)
        errors = (truth - probability[:, c]).abs()
        errors, order = errors.sort(descending=True)
        truth = truth[order]
        missed = truth.sum() - truth.cumsum(0)
        either = truth.sum() + (1 - truth).cumsum(0)
        jaccard = 1 - missed / either
        terms.append(errors @ torch.diff(jaccard, prepend=jaccard.new_zeros(1)))
    return torch.stack(terms).mean()


def test_gradient_is_that_of_automatic_differentiation() -> None:
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(3000, 6, generator=g, requires_grad=True)
    label = torch.randint(1, 5, (3000,), generator=g)
    found = lovasz_softmax(logits.softmax(1), label)
    wanted = by_autograd(logits.softmax(1), label)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(3 * found, logits)[0],
        torch.autograd.grad(3 * wanted, logits)[0],
        atol=1e-8,
        rtol=1e-4,
    )


def test_hard_predictions_give_the_jaccard_loss() -> None:
    label = torch.tensor([0, 0, 1, 1])
    predicted = torch.tensor([0, 1, 1, 1])
    loss = lovasz_softmax(torch.eye(2, dtype=torch.float64)[predicted], label)
    assert loss.item() == pytest.approx(((1 - 1 / 2) + (1 - 2 / 3)) / 2)


def test_terms_are_weighted_and_empty_input_is_zero() -> None:
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(1))
    label = torch.arange(10) % 3
    whole = segmentation(logits, label, SegmentationConfig())
    half = segmentation(logits, label, SegmentationConfig(cross_entropy=0.5, lovasz=0.0))
    assert set(whole) == {"cross_entropy", "lovasz"}
    assert set(half) == {"cross_entropy"}
    assert half["cross_entropy"].item() == pytest.approx(0.5 * whole["cross_entropy"].item())
    empty = torch.zeros(0, 3, requires_grad=True)
    assert segmentation(empty, label[:0], SegmentationConfig())["cross_entropy"].item() == 0

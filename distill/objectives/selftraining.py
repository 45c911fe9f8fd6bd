"""Switchable self-training: after a warm-up the student's own word sometimes stands in for the teacher's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class SelfTrainingConfig:
    """When the student's own prediction is the label (CLIP2Scene section 3.3).

    Attributes:
        probability: share of the steps after the warm-up that take the student's own labels; 0 leaves it out
        start: share of the training that is warm-up; CLIP2Scene's is half
        unpaired: also take the points that no camera saw (the published code meant to, and overwrote the term)
        min_confidence: softmax confidence at ``objectives.semantic.scale`` below which a point keeps the teacher's word
    """

    probability: float = 0.0
    start: float = 0.5
    unpaired: bool = False
    min_confidence: float = 0.0


def switched(config: SelfTrainingConfig, progress: float, coin: float) -> bool:
    """Whether a step takes the student's own labels.

    Args:
        config: probability and warm-up.
        progress: share of the training that is done, 0..1.
        coin: a number drawn from 0..1 for this step.
    """
    return progress >= config.start and coin < config.probability


def own_labels(
    cosine: Float[Tensor, "m c"], scale: float, min_confidence: float
) -> tuple[Int64[Tensor, " m"], Bool[Tensor, " m"]]:
    """The student's best class of each point, and whether it is sure enough of it."""
    confidence, label = (cosine.detach().float() * scale).softmax(1).max(1)
    return label, confidence >= min_confidence


def replaced(
    label: Int64[Tensor, " m"], cosine: Float[Tensor, "m c"], scale: float, min_confidence: float
) -> Int64[Tensor, " m"]:
    """The labels with the student's own where it is sure."""
    own, sure = own_labels(cosine, scale, min_confidence)
    return torch.where(sure, own, label)

"""Self-training on the student's own pseudo-labels.

After a warm-up the student's own labels sometimes replace the teacher's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor


@dataclass(frozen=True)
class SelfTrainingConfig:
    """Settings of switchable self-training: the student's prediction as label (CLIP2Scene 3.3)."""

    probability: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="fraction of later steps that train on the student's own "
            "pseudo-labels; 0 is off",
        ),
    ] = 0.0
    start: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="fraction of the training that is warm-up; CLIP2Scene's is half",
        ),
    ] = 0.5
    unpaired: Annotated[
        bool,
        Field(
            description="also train on points that no camera sees (as the published code meant to)"
        ),
    ] = False
    min_confidence: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="softmax confidence at ``objectives.semantic.scale`` below which a point "
            "keeps the teacher's label",
        ),
    ] = 0.0


def switched(config: SelfTrainingConfig, progress: float, coin: float) -> bool:
    """Whether a training step takes the student's own pseudo-labels.

    Args:
        config: probability and warm-up.
        progress: share of the training that is done, 0..1.
        coin: a number drawn from 0..1 for this step.
    """
    return progress >= config.start and coin < config.probability


def own_labels(
    cosine: Float[Tensor, "m c"], scale: float, min_confidence: float
) -> tuple[Int64[Tensor, " m"], Bool[Tensor, " m"]]:
    """Pseudo-labels: the student's best class of each point, and whether it is confident."""
    confidence, label = (cosine.detach().float() * scale).softmax(1).max(1)
    return label, confidence >= min_confidence


def replaced(
    label: Int64[Tensor, " m"], cosine: Float[Tensor, "m c"], scale: float, min_confidence: float
) -> Int64[Tensor, " m"]:
    """Replaces labels by the student's own pseudo-labels where it is confident."""
    own, sure = own_labels(cosine, scale, min_confidence)
    return torch.where(sure, own, label)

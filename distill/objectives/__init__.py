"""What the student learns from: one file an objective, and the weighted terms of those that are switched on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from distill.batch import Batch
from distill.objectives.segmentation import SegmentationConfig, segmentation
from distill.objectives.semantic import SemanticConfig, semantic
from distill.student import Student

Terms = Callable[[Batch], dict[str, Tensor]]
"""The weighted terms of the loss on a batch, by name."""


@dataclass(frozen=True)
class ObjectivesConfig:
    """What a student learns from: ``segmentation`` in fine-tuning, the others in pre-training."""

    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)


def pretraining(student: Student, text: Float[Tensor, "c d"], config: ObjectivesConfig) -> Terms:
    """What a student learns from without human labels.

    Args:
        student: the one to be trained.
        text: unit embedding of each class, on its device.
        config: objectives and weights.
    """

    def terms(batch: Batch) -> dict[str, Tensor]:
        embedding = student(batch, points=batch.pair_point, heads=("semantic",)).semantic
        assert embedding is not None
        value = semantic(embedding, batch.pair_label, text, config.semantic)
        return {"semantic": config.semantic.weight * value}

    return terms


def finetuning(student: Student, config: ObjectivesConfig) -> Terms:
    """What a student with a classifier learns from human labels."""

    def terms(batch: Batch) -> dict[str, Tensor]:
        logits = student(batch, points=batch.pair_point, heads=("classifier",)).logits
        assert logits is not None
        return segmentation(logits, batch.pair_label, config.segmentation)

    return terms

"""Training losses (objectives) and their weights: pre-training and fine-tuning.

One file an objective, and the weighted terms of those that are switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clipsweep.distill.objectives.regression import RegressionConfig, regression
from clipsweep.distill.objectives.segmentation import SegmentationConfig, segmentation
from clipsweep.distill.objectives.selftraining import (
    SelfTrainingConfig,
    own_labels,
    replaced,
    switched,
)
from clipsweep.distill.objectives.semantic import SemanticConfig, semantic
from clipsweep.distill.objectives.spatiotemporal import SpatioTemporalConfig, spatiotemporal
from clipsweep.distill.student.batch import Batch
from clipsweep.distill.student.unet import Student


@dataclass(frozen=True)
class ObjectivesConfig:
    """Weights and settings of the losses: ``segmentation`` to fine-tune, others to pre-train."""

    semantic: SemanticConfig = field(default_factory=SemanticConfig)
    spatiotemporal: SpatioTemporalConfig = field(default_factory=SpatioTemporalConfig)
    selftraining: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)

    def __post_init__(self) -> None:
        """Validates the loss weights: not all 0, and no pixel loss where there are no pixels."""
        if not self.weights(0.0):
            raise ValueError(
                "objectives: every weight is 0 at the start, there is nothing to train on"
            )
        if self.semantic.targets == "points" and self.needs_pairs():
            raise ValueError(
                "objectives: fused points have no pixels to compare with; set "
                "semantic.targets=pixels"
            )

    def weights(self, progress: float) -> dict[str, float]:
        """Weight of each active pre-training loss at a share of the training (loss schedule)."""
        parts: dict[str, SemanticConfig | RegressionConfig | SpatioTemporalConfig] = {
            "semantic": self.semantic,
            "regression": self.regression,
            "spatiotemporal": self.spatiotemporal,
        }
        return {
            name: part.weight
            for name, part in parts.items()
            if part.weight and not part.start > progress
        }

    def needs_pairs(self) -> bool:
        """Whether a loss compares points with points or pixels, through the local head."""
        return self.spatiotemporal.weight > 0 or self.regression.weight > 0

    def needs_features(self) -> bool:
        """Whether a loss needs the image features of pixels.

        The published code's consistency does without.
        """
        return self.regression.weight > 0 or (
            self.spatiotemporal.weight > 0 and self.spatiotemporal.kind != "reference"
        )

    def needs_labels(self) -> bool:
        """Whether a loss needs the class labels of pixels."""
        return self.semantic.weight > 0 or self.spatiotemporal.weight > 0


@dataclass(frozen=True, slots=True)
class Moment:
    """Training progress at a step, for loss schedules.

    The share that is done, and a number drawn from 0..1 for this step.
    """

    progress: float
    coin: float


Terms = Callable[[Batch, Moment], dict[str, Tensor]]
"""The weighted terms of the loss on a batch, by name."""


def pretraining(student: Student, text: Float[Tensor, "c d"], config: ObjectivesConfig) -> Terms:
    """Pre-training losses without human labels: the weighted distillation terms.

    Args:
        student: the one to be trained.
        text: unit embedding of each class, on its device.
        config: objectives and weights.
    """

    def terms(batch: Batch, moment: Moment) -> dict[str, Tensor]:
        own = switched(config.selftraining, moment.progress, moment.coin)
        weights = config.weights(moment.progress)
        everywhere = own and config.selftraining.unpaired
        feats = student.features(batch, None if everywhere else batch.pair_point)
        pairs = feats[batch.pair_point] if everywhere else feats
        local = student.local(pairs) if weights.keys() - {"semantic"} else None
        named = student.semantic(pairs, unit=True) if "spatiotemporal" in weights else None
        found = {}
        # products of unit vectors are too fine for 8 bits
        with torch.autocast(text.device.type, enabled=False):
            if "semantic" in weights:
                unpaired = feats if everywhere else None
                found["semantic"] = _semantic(student, pairs, unpaired, batch, text, config, own)
            if local is not None:
                found |= _with_pixels(local, named, batch, text, config, weights)
        return {name: weights[name] * value for name, value in found.items()}

    return terms


def _semantic(
    student: Student,
    pairs: Float[Tensor, "m c"],
    everywhere: Float[Tensor, "n c"] | None,
    batch: Batch,
    text: Tensor,
    config: ObjectivesConfig,
    own: bool,
) -> Tensor:
    """Semantic consistency loss under the teacher's pseudo-labels, or the student's ``own``.

    With ``everywhere``, the features of all points, also that of points without a pair.
    """
    part = config.semantic
    selftraining = config.selftraining
    unit = part.kind != "ce_reference"
    scale = part.scale if unit else 1.0
    cosine = student.semantic.cosines(pairs, text, unit)
    label = batch.pair_label
    if own:
        label = replaced(label, cosine, scale, selftraining.min_confidence)
    value = semantic(cosine, label, part)
    if everywhere is not None:
        rest = torch.ones(len(everywhere), dtype=torch.bool, device=everywhere.device)
        rest[batch.pair_point] = False
        cosine = student.semantic.cosines(everywhere[rest], text, unit)
        label, sure = own_labels(cosine, scale, selftraining.min_confidence)
        value = value + semantic(cosine[sure], label[sure], part)
    return value


def _with_pixels(
    local: Float[Tensor, "m d"],
    named: Float[Tensor, "m d"] | None,
    batch: Batch,
    text: Tensor,
    config: ObjectivesConfig,
    wanted: Container[str],
) -> dict[str, Tensor]:
    """Feature regression and spatio-temporal consistency: points against pixels.

    Where a teacher has no features, its class's text stands for them.
    """
    if batch.pixel is not None and batch.pair_pixel is not None:
        pixel = batch.pixel[batch.pair_pixel].to(text.dtype)
    else:
        pixel = text[batch.pair_label]
    found = {}
    if "regression" in wanted:
        found["regression"] = regression(F.normalize(local, dim=1), pixel)
    if "spatiotemporal" in wanted:
        assert batch.voxel_id is not None
        assert named is not None
        if config.spatiotemporal.kind != "reference":
            local = F.normalize(local, dim=1)
        found["spatiotemporal"] = spatiotemporal(
            local,
            named,
            pixel,
            text[batch.pair_label],
            batch.voxel_id,
            config.spatiotemporal,
        )
    return found


def finetuning(student: Student, config: ObjectivesConfig, unlabelled: float = 0.0) -> Terms:
    """Fine-tuning loss of a classifier on human labels, and semi-supervised on pseudo-labels.

    Args:
        student: the one to be trained, with a classifier.
        config: objectives and weights.
        unlabelled: weight of the loss on batches whose targets are pseudo-labels.
    """

    def terms(batch: Batch, moment: Moment) -> dict[str, Tensor]:
        assert student.classifier is not None
        logits = student.classifier(student.features(batch, batch.pair_point))
        found = segmentation(logits, batch.pair_label, config.segmentation)
        if not batch.unlabelled:
            return found
        return {f"unlabelled {name}": unlabelled * value for name, value in found.items()}

    return terms

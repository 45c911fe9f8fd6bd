"""Semantic consistency loss: points against the text embeddings of their labels.

Points with a pixel label are drawn to that class's text and away from the others'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from clipsweep.distill.objectives import published
from clipsweep.distill.objectives.segmentation import lovasz_share
from clipsweep.distill.training.distributed import all_rows, share_of_mean, world_size

_INFONCE = {
    "infonce": published.infonce,
    "infonce_mean": published.infonce_mean,
    "infonce_paper": published.infonce_paper,
}


@dataclass(frozen=True)
class SemanticConfig:
    """Settings of the semantic (point-text) consistency loss."""

    weight: Annotated[
        float,
        Field(ge=0, le=1e9, description="weight of this loss; 0 leaves it out"),
    ] = 1.0
    start: Annotated[
        float,
        Field(
            ge=0, le=1, description="fraction of the training that passes before this loss sets in"
        ),
    ] = 0.0
    kind: Annotated[
        Literal["ce", "infonce", "infonce_mean", "infonce_paper", "ce_reference"],
        Field(
            description="ce: cross-entropy over classes; infonce: over points of a class; "
            "infonce_mean: the same with a mean of logs; CLIP2Scene's eq. 1 as printed: "
            "infonce_paper, as in its code: ce_reference",
        ),
    ] = "ce"
    targets: Annotated[
        Literal["pixels", "points"],
        Field(
            description="what labels a point: each pixel that shows it, or its fused pseudo-label"
        ),
    ] = "pixels"
    tau: Annotated[float, Field(ge=0.001, le=1e9, description="temperature of infonce")] = 0.5
    scale: Annotated[
        float,
        Field(ge=0.001, le=1e9, description="inverse temperature of ce: factor of the cosines"),
    ] = 16.0
    lovasz: Annotated[
        float,
        Field(
            ge=0,
            le=1e9,
            description="weight of Lovasz-softmax beside ce (pseudo-label training of AFOV and "
            "LOSC: 1 with targets points)",
        ),
    ] = 0.0


def cross_entropy(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], scale: float
) -> Float[Tensor, ""]:
    """Cross-entropy over a point's classes, ``mean_i -log softmax_c(scale <p_i, t_c>)[y_i]``.

    This process's share of it, on unit embeddings.
    """
    return share_of_mean(F.cross_entropy(cosine.float() * scale, label, reduction="none"))


def semantic(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], config: SemanticConfig
) -> Float[Tensor, ""]:
    """Point-text consistency loss of the configured kind: this process's share of it.

    Zero, with a gradient of zero, when nothing is labelled. Every kind but ``ce`` is a function of
    that name in published.py.

    Args:
        cosine: ``<p_i, t_c>`` of the labelled points' unit embeddings and the unit embedding of
            each class; for ``ce_reference`` of the points' embeddings as they come.
        label: their classes.
        config: which term, and its constants.
    """
    if config.kind in _INFONCE:
        cosine = all_rows(cosine)
        if not len(cosine):
            return cosine.sum() * 0.0
        return _INFONCE[config.kind](cosine, all_rows(label), config.tau) / world_size()
    if config.kind == "ce_reference":
        scale = 1.0
        value = published.ce_reference(cosine, label)
    else:
        scale = config.scale
        value = cross_entropy(cosine, label, scale)
    if config.lovasz:
        value = value + config.lovasz * lovasz_share((cosine.float() * scale).softmax(1), label)
    return value

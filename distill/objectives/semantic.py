"""Semantic consistency loss: points against the text embeddings of their labels.

Points with a pixel label are drawn to that class's text and away from the others'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from clipsweep.distill.objectives.segmentation import lovasz_share
from clipsweep.distill.training.distributed import all_rows, share_of_mean, world_size


@dataclass(frozen=True)
class SemanticConfig:
    """Point-text consistency."""

    weight: Annotated[
        float,
        Field(ge=0, le=1e9, description="factor of this term; 0 leaves it out"),
    ] = 1.0
    start: Annotated[
        float,
        Field(ge=0, le=1, description="share of the training that passes before this term sets in"),
    ] = 0.0
    kind: Annotated[
        Literal["ce", "infonce", "infonce_mean", "infonce_paper", "ce_reference"],
        Field(
            description="ce over a point's classes; infonce over a class's points, infonce_mean "
            "with a mean of logs; as published",
        ),
    ] = "ce"
    targets: Annotated[
        Literal["pixels", "points"],
        Field(description="label of each point-pixel pair, or of each point after fusion"),
    ] = "pixels"
    tau: Annotated[float, Field(ge=0.001, le=1e9, description="temperature of infonce")] = 0.5
    scale: Annotated[
        float,
        Field(ge=0.001, le=1e9, description="factor of the cosines in ce"),
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


def infonce(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], tau: float, kind: str = "infonce"
) -> Float[Tensor, ""]:
    """Class-wise InfoNCE, summed over the classes present.

    ``sum_c -log( sum_{i: y_i=c} exp(<t_c,p_i>/tau) / sum_j exp(<t_c,p_j>/tau) )``: CLIP2Scene eq. 1
    with the positives in the denominator too. ``infonce_paper`` is as printed, over the points that
    are not of class c alone: it has no lower bound. ``infonce_mean`` takes the mean over i of the
    logs instead of the log of the sum, in which points that are right already drown the others.

    Args:
        cosine: ``<p_i, t_c>`` of unit embeddings.
        label: class of each point.
        tau: temperature.
        kind: which of the three.

    Returns:
        The loss; zero, with a gradient of zero, without points.
    """
    if not len(label):
        return cosine.sum() * 0.0
    logits = cosine.float() / tau
    own = F.one_hot(label, logits.shape[1]).bool()
    present = own.any(0)
    against = logits.masked_fill(own, -torch.inf) if kind == "infonce_paper" else logits
    present &= against.amax(0) > -torch.inf
    log_normalizer = torch.logsumexp(against[:, present], 0)
    if kind == "infonce_mean":
        positives = (logits.masked_fill(~own, 0).sum(0) / own.sum(0).clamp(min=1))[present]
    else:
        positives = torch.logsumexp(logits.masked_fill(~own, -torch.inf)[:, present], 0)
    return (log_normalizer - positives).sum()


def cross_entropy(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], scale: float
) -> Float[Tensor, ""]:
    """``mean_i -log softmax_c(scale <p_i, t_c>)[y_i]`` on unit embeddings.

    This process's share of it.
    """
    return share_of_mean(F.cross_entropy(cosine.float() * scale, label, reduction="none"))


def semantic(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], config: SemanticConfig
) -> Float[Tensor, ""]:
    """This process's share of the configured term.

    Zero, with a gradient of zero, when nothing is labelled.

    ``ce_reference`` is what CLIP2Scene's published code computes: cross-entropy of ``p T^T`` with p
    as it comes and no temperature.

    Args:
        cosine: ``<p_i, t_c>`` of the labelled points' unit embeddings and the unit embedding of
            each class; for ``ce_reference`` of the points' embeddings as they come.
        label: their classes.
        config: which term, and its constants.
    """
    if config.kind.startswith("infonce"):
        return infonce(all_rows(cosine), all_rows(label), config.tau, config.kind) / world_size()
    scale = 1.0 if config.kind == "ce_reference" else config.scale
    value = cross_entropy(cosine, label, scale)
    if config.lovasz:
        value = value + config.lovasz * lovasz_share((cosine.float() * scale).softmax(1), label)
    return value

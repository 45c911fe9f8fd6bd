"""Semantic consistency: points with a pixel label are drawn to that class's text and away from the others'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class SemanticConfig:
    """Point-text consistency.

    Attributes:
        weight: factor of this term; 0 leaves it out
        kind: ce over a point's classes, or infonce over a class's points (CLIP2Scene, eq. 1, repaired)
        targets: label of each point-pixel pair, or of each point after fusion
        tau: temperature of infonce
        scale: factor of the cosines in ce
    """

    weight: float = 1.0
    kind: Literal["ce", "infonce"] = "ce"
    targets: Literal["pixels", "points"] = "pixels"
    tau: float = 0.5
    scale: float = 16.0


def infonce(cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], tau: float) -> Float[Tensor, ""]:
    """Class-wise InfoNCE, summed over the classes present.

    ``sum_c -log( sum_{i: y_i=c} exp(<t_c,p_i>/tau) / sum_j exp(<t_c,p_j>/tau) )`` (CLIP2Scene eq. 1 with the positives
    in the denominator too; as printed, without them, it has no lower bound).

    Args:
        cosine: ``<p_i, t_c>`` of unit embeddings.
        label: class of each point.
        tau: temperature.
    """
    logits = cosine.float() / tau
    everyone = torch.logsumexp(logits, 0)
    own = F.one_hot(label, logits.shape[1]).bool()
    positives = torch.logsumexp(logits.masked_fill(~own, -torch.inf), 0)
    present = own.any(0)
    return (everyone - positives)[present].sum()


def cross_entropy(cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], scale: float) -> Float[Tensor, ""]:
    """``mean_i -log softmax_c(scale <p_i, t_c>)[y_i]`` on unit embeddings."""
    return F.cross_entropy(cosine.float() * scale, label)


def semantic(
    embedding: Float[Tensor, "m d"], label: Int64[Tensor, " m"], text: Float[Tensor, "c d"], config: SemanticConfig
) -> Float[Tensor, ""]:
    """The configured term; zero, with a gradient of zero, when nothing is labelled.

    Args:
        embedding: unit embeddings of the labelled points.
        label: their classes.
        text: unit embedding of each class.
        config: which term, and its constants.
    """
    if not len(label):
        return embedding.sum() * 0.0
    terms: dict[str, Callable[[Tensor], Tensor]] = {
        "ce": lambda cosine: cross_entropy(cosine, label, config.scale),
        "infonce": lambda cosine: infonce(cosine, label, config.tau),
    }
    return terms[config.kind](embedding @ text.T.to(embedding.dtype))

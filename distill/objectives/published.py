"""CLIP2Scene's losses (Chen et al., CVPR 2023) as printed, as in its code, and variants of eq. 1.

=============================  =====================================================================
``infonce_paper``              eq. 1 as printed
``infonce``                    eq. 1, the class's own points in the denominator too; a variant
``infonce_mean``               the same with a mean of logs, not the log of a sum; a variant
``ce_reference``               what its code has for eq. 1: ``loss_nuscenes`` in
                               pretrain/lightning_trainer.py
``spatiotemporal_paper``       eq. 2-5 as printed
``spatiotemporal_reference``   what its code has for eq. 2-5: ``feature_packaging`` in the same
                               file, and model/fusionNet.py
=============================  =====================================================================

The variants are this project's. All are here to compare with: the losses to train with are in
semantic.py and spatiotemporal.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clipsweep.distill.training.distributed import share_of_mean

_SLOTS = 8  # pairs of a voxel that the published code uses


# --- points and text: eq. 1 -----------------------------------------------------------------------


def infonce_paper(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], tau: float
) -> Float[Tensor, ""]:
    """CLIP2Scene eq. 1 as printed: InfoNCE of each class text against the points of other classes.

    ``sum_c -log( sum_{i: y_i=c} exp(<t_c,p_i>/tau) / sum_{j: y_j!=c} exp(<t_c,p_j>/tau) )`` over
    the classes present. It has no lower bound.

    Args:
        cosine: ``<p_i, t_c>`` of unit embeddings of points and class names, at least one point.
        label: class of each point.
        tau: temperature.
    """
    logits, own = _eq_1(cosine, label, tau)
    others = logits.masked_fill(own, -torch.inf)
    present = own.any(0) & (others.amax(0) > -torch.inf)
    return (_log_sum(others, present) - _log_sum_of_own(logits, own, present)).sum()


def infonce(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], tau: float
) -> Float[Tensor, ""]:
    """InfoNCE (eq. 1) with the denominator over all points, the class's own too; at least 0.

    Args: see ``infonce_paper``.
    """
    logits, own = _eq_1(cosine, label, tau)
    present = own.any(0) & (logits.amax(0) > -torch.inf)
    return (_log_sum(logits, present) - _log_sum_of_own(logits, own, present)).sum()


def infonce_mean(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], tau: float
) -> Float[Tensor, ""]:
    """Class-wise InfoNCE with the mean over a class's points of the logs (supervised contrastive).

    ``sum_c mean_{i: y_i=c} -log( exp(<t_c,p_i>/tau) / sum_j exp(<t_c,p_j>/tau) )``. In the log of
    the sum of ``infonce``, points that are right already drown the others.

    Args: see ``infonce_paper``.
    """
    logits, own = _eq_1(cosine, label, tau)
    present = own.any(0) & (logits.amax(0) > -torch.inf)
    positives = logits.masked_fill(~own, 0).sum(0) / own.sum(0).clamp(min=1)
    return (_log_sum(logits, present) - positives[present]).sum()


def _eq_1(
    cosine: Float[Tensor, "m c"], label: Int64[Tensor, " m"], tau: float
) -> tuple[Float[Tensor, "m c"], Bool[Tensor, "m c"]]:
    """Point-text similarities of eq. 1, and which points are of which class.

    ``<t_c,p_i>/tau``, and whether point i is of class c.
    """
    logits = cosine.float() / tau
    return logits, F.one_hot(label, logits.shape[1]).bool()


def _log_sum(logits: Float[Tensor, "m c"], present: Bool[Tensor, " c"]) -> Float[Tensor, " k"]:
    return torch.logsumexp(logits[:, present], 0)


def _log_sum_of_own(
    logits: Float[Tensor, "m c"], own: Bool[Tensor, "m c"], present: Bool[Tensor, " c"]
) -> Float[Tensor, " k"]:
    return torch.logsumexp(logits.masked_fill(~own, -torch.inf)[:, present], 0)


def ce_reference(product: Float[Tensor, "m c"], label: Int64[Tensor, " m"]) -> Float[Tensor, ""]:
    """CLIP2Scene's code: cross-entropy of ``p T^T``, p not normalised, no temperature.

    This process's share of the mean over the points of all.

    Args:
        product: ``<p_i, t_c>`` of the points' embeddings as they come and unit class embeddings.
        label: class of each point.
    """
    return share_of_mean(F.cross_entropy(product.float(), label, reduction="none"))


# --- points and pixels of a voxel: eq. 2-5 --------------------------------------------------------


def segment_softmax(
    scores: Float[Tensor, "m k"], voxel: Int64[Tensor, " m"], voxels: int
) -> Float[Tensor, "m k"]:
    """Attention weights within each voxel: softmax over all rows and columns of its pairs."""
    top = scores.new_full((voxels,), -torch.inf)
    top = top.scatter_reduce(0, voxel, scores.detach().amax(1), "amax")
    weight = (scores - top[voxel, None]).exp()
    total = scores.new_zeros(voxels).index_add(0, voxel, weight.sum(1))
    return weight / total[voxel, None]


def spatiotemporal_paper(
    local: Float[Tensor, "m d"],
    pixel: Float[Tensor, "m d"],
    text: Float[Tensor, "m d"],
    voxel: Int64[Tensor, " m"],
    voxels: int,
) -> Float[Tensor, ""]:
    """CLIP2Scene eq. 2-5 as printed, summed over voxels: points against their voxel's feature.

    ``f_n = sum_i a_i x_i + b_i p_i`` with ``a_i = exp(<x_i,t_i>) / Z_n``,
    ``b_i = exp(<p_i,t_i>) / Z_n`` and ``Z_n`` the sum of both kinds over voxel n; the loss is the
    sum of ``1 - sigmoid(<p_i,f_n>)``. Gradients flow through all of it.

    Args:
        local: unit embedding p of each pair's point.
        pixel: unit feature x of its pixel.
        text: unit embedding t of the pixel's class.
        voxel: voxel n of the point, 0..voxels-1, every voxel with a pair.
        voxels: number of voxels.
    """
    scores = torch.stack([(pixel * text).sum(1), (local * text).sum(1)], 1)
    share = segment_softmax(scores, voxel, voxels)
    fused = local.new_zeros(voxels, local.shape[1])
    fused = fused.index_add(0, voxel, share[:, :1] * pixel + share[:, 1:] * local)
    return (1 - torch.sigmoid((local * fused[voxel]).sum(1))).sum()


def spatiotemporal_reference(
    local: Float[Tensor, "m d"], text: Float[Tensor, "m d"], voxel: Int64[Tensor, " m"], voxels: int
) -> Float[Tensor, ""]:
    """CLIP2Scene's code for the spatio-temporal loss (eq. 2-5), averaged over voxels, flaws kept.

    The first 8 pairs of a voxel count, all against the text of the voxel's first pair; attention is
    a softmax over ``<p_i, t>``; the loss is the mean of ``1 - sigmoid(<p_i, f>)`` over 8 slots a
    voxel, where an empty slot is a zero vector and so counts 0.5. Pixel features play no part, and
    nothing is detached. (Its sort is unstable; ours is stable, one of the orders that it may give.)

    Args:
        local: embedding p of each pair's point, as it comes.
        text: unit embedding t of the pixel's class.
        voxel: voxel of the point, 0..voxels-1, every voxel with a pair.
        voxels: number of voxels.
    """
    order = voxel.argsort(stable=True)
    counts = voxel.bincount(minlength=voxels)
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(voxel), device=voxel.device) - first[voxel[order]]
    kept = order[slot < _SLOTS]
    voxel_of = voxel[kept]
    point = local[kept]
    scores = (point * text[order[first]][voxel_of]).sum(1, keepdim=True)
    share = segment_softmax(scores, voxel_of, voxels)
    fused = local.new_zeros(voxels, local.shape[1]).index_add(0, voxel_of, share * point)
    apart = (1 - torch.sigmoid((point * fused[voxel_of]).sum(1))).sum()
    return (apart + 0.5 * (_SLOTS * voxels - len(kept))) / (_SLOTS * voxels)

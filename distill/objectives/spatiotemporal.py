"""Spatio-temporal consistency loss over voxels (CLIP2Scene).

Points in one voxel of the merged sweeps get similar features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor

from clipsweep.distill.training.distributed import all_reduce_sum

_SLOTS = 8  # pairs of a voxel that the published code uses
# pairs are looked at in so many parts, but none smaller than that
_PARTS = 32
_PART = 1024


@dataclass(frozen=True)
class SpatioTemporalConfig:
    """Consistency over voxels of the merged, un-augmented cloud."""

    weight: Annotated[
        float,
        Field(ge=0, le=1e9, description="factor of this term; 0 leaves it out"),
    ] = 0.0
    start: Annotated[
        float,
        Field(ge=0, le=1, description="share of the training that passes before this term sets in"),
    ] = 0.0
    kind: Annotated[
        Literal["ours", "paper", "reference"],
        Field(description="ours; CLIP2Scene eq. 2-5 as printed; what its published code computes"),
    ] = "ours"
    temperature: Annotated[
        float,
        Field(
            ge=0.001,
            le=1e9,
            description="of the attention in ours; on unit features 1 is nearly uniform",
        ),
    ] = 0.05
    mean: Annotated[
        Literal["pairs", "cubes"],
        Field(description="ours is averaged over pairs, or over voxels (cubes)"),
    ] = "pairs"
    cell_m: Annotated[float, Field(ge=0.002, le=100, description="side of a voxel [m]")] = 0.1


def segment_softmax(
    scores: Float[Tensor, "m k"], voxel: Int64[Tensor, " m"], voxels: int
) -> Float[Tensor, "m k"]:
    """``exp(s_ik) / Z`` with ``Z`` the sum over all rows and columns of the row's voxel."""
    top = scores.new_full((voxels,), -torch.inf)
    top = top.scatter_reduce(0, voxel, scores.detach().amax(1), "amax")
    weight = (scores - top[voxel, None]).exp()
    total = scores.new_zeros(voxels).index_add(0, voxel, weight.sum(1))
    return weight / total[voxel, None]


def spatiotemporal(
    local: Float[Tensor, "m d"],
    semantic: Float[Tensor, "m d"],
    pixel: Float[Tensor, "m d"],
    text: Float[Tensor, "m d"],
    voxel: Int64[Tensor, " m"],
    config: SpatioTemporalConfig,
) -> Float[Tensor, ""]:
    """This process's share of the configured term over point-pixel pairs.

    Zero, with a gradient of zero, without pairs.

    With ``a_i = exp(<x_i,t_i>/T) / Z_n`` and ``b_i = exp(<s_i,t_i>/T) / Z_n`` (``Z_n`` sums both
    kinds over voxel n), the fused feature is ``f_n = sum_i a_i x_i + b_i p_i``; ``ours`` is the
    mean of ``1 - cos(p_i, f_n)``. Nothing flows back through a, b and the p inside f, else the term
    agrees with itself, and a voxel with one pair is compared with its pixel alone.
    ``paper`` takes T = 1, lets gradients flow and sums ``1 - sigmoid(<p_i,f_n>)`` over a voxel's
    pairs, averaged over voxels. ``reference`` uses points only, see ``reference``.

    Args:
        local: the student's local embedding of each pair's point; unit length, but as it comes for
            ``reference``.
        semantic: its unit semantic embedding.
        pixel: unit feature of the pixel.
        text: unit embedding of the pixel's class.
        voxel: voxel of the point, 0..voxels-1, every voxel with a pair.
        config: which term.
    """
    over_pairs = config.kind == "ours" and config.mean == "pairs"
    voxels = int(voxel.max()) + 1 if len(voxel) else 0
    count = all_reduce_sum(
        torch.tensor(len(voxel) if over_pairs else voxels, device=voxel.device)
    ).clamp(min=1)
    return _InParts.apply(local, semantic, pixel, text, voxel, config) / count


class _InParts(torch.autograd.Function):
    """The sum over all voxels, some whole voxels at a time.

    No tensor of all pairs is kept but the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        local: Tensor,
        semantic: Tensor,
        pixel: Tensor,
        text: Tensor,
        voxel: Tensor,
        config: SpatioTemporalConfig,
    ) -> Tensor:
        value = torch.zeros((), device=local.device)
        slope = torch.empty_like(local)
        for rows, numbers in _parts(voxel):
            with torch.enable_grad():
                own = local[rows].float().detach().requires_grad_()
                semantic_part, pixel_part, text_part = (
                    each[rows].float() for each in (semantic, pixel, text)
                )
                part = _part(own, semantic_part, pixel_part, text_part, numbers, config)
            slope[rows] = torch.autograd.grad(part, own)[0].to(slope.dtype)
            value += part.detach()
        ctx.slope = slope
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        # scaled in its place, so there is no second time
        slope = ctx.slope
        ctx.slope = None
        return slope.mul_(grads[0]), None, None, None, None, None


def _parts(voxel: Int64[Tensor, " m"]) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of whole voxels in their order, about as many a time, and their voxels numbered from
    0."""
    size = max(_PART, len(voxel) // _PARTS)
    order = voxel.argsort(stable=True)
    ends = voxel.bincount().cumsum(0)
    targets = torch.arange(size, len(voxel) + size, size, device=voxel.device)
    bounds = ends[torch.searchsorted(ends, targets.clamp(max=len(voxel)))].unique().tolist()
    for first, last in pairwise([0, *bounds]):
        rows = order[first:last]
        yield rows, voxel[rows] - voxel[rows[0]]


def _part(
    local: Float[Tensor, "m d"],
    semantic: Float[Tensor, "m d"],
    pixel: Float[Tensor, "m d"],
    text: Float[Tensor, "m d"],
    voxel: Int64[Tensor, " m"],
    config: SpatioTemporalConfig,
) -> Float[Tensor, ""]:
    """The sum over some voxels, numbered from 0."""
    voxels = int(voxel.max()) + 1
    if config.kind == "reference":
        return reference(local, text, voxel, voxels) * voxels
    temperature = config.temperature if config.kind == "ours" else 1.0
    # the paper has one feature
    value, query = (local, local) if config.kind == "paper" else (local.detach(), semantic)
    scores = torch.stack([(pixel * text).sum(1), (query * text).sum(1)], 1) / temperature
    pairs = voxel.bincount(minlength=voxels)
    if config.kind == "ours":
        scores[:, 1] = scores[:, 1].masked_fill(pairs[voxel] == 1, -torch.inf)
    share = segment_softmax(scores, voxel, voxels)
    fused = local.new_zeros(voxels, local.shape[1])
    fused = fused.index_add(0, voxel, share[:, :1] * pixel + share[:, 1:] * value)
    if config.kind == "paper":
        return (1 - torch.sigmoid((local * fused[voxel]).sum(1))).sum()
    apart = 1 - F.cosine_similarity(local, fused[voxel], dim=1)
    return apart.sum() if config.mean == "pairs" else (apart / pairs[voxel]).sum()


def reference(
    local: Float[Tensor, "m d"], text: Float[Tensor, "m d"], voxel: Int64[Tensor, " m"], voxels: int
) -> Float[Tensor, ""]:
    """What CLIP2Scene's published code computes, for comparison; its flaws are kept.

    The first 8 pairs of a voxel count, all against the text of the voxel's first pair; attention is
    a softmax over ``<p_i, t>``; the loss is the mean of ``1 - sigmoid(<p_i, f>)`` over 8 slots a
    voxel, where an empty slot is a zero vector and so counts 0.5. Pixel features play no part, and
    nothing is detached. (Its sort is unstable; ours is stable, one of the orders that it may give.)
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

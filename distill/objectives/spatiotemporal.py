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

from clipsweep.distill.objectives import published
from clipsweep.distill.training.distributed import all_reduce_sum

# pairs are looked at in so many parts, but none smaller than that
_PARTS = 32
_PART = 1024


@dataclass(frozen=True)
class SpatioTemporalConfig:
    """Settings of the spatio-temporal consistency over voxels of merged, un-augmented sweeps."""

    weight: Annotated[
        float,
        Field(ge=0, le=1e9, description="weight of this loss; 0 leaves it out"),
    ] = 0.0
    start: Annotated[
        float,
        Field(
            ge=0, le=1, description="fraction of the training that passes before this loss sets in"
        ),
    ] = 0.0
    kind: Annotated[
        Literal["ours", "paper", "reference"],
        Field(
            description="ours; paper: CLIP2Scene's eq. 2-5 as printed; reference: what its "
            "published code computes"
        ),
    ] = "ours"
    temperature: Annotated[
        float,
        Field(
            ge=0.001,
            le=1e9,
            description="softmax temperature of the attention in kind ours; on unit "
            "features 1 is nearly uniform",
        ),
    ] = 0.05
    mean: Annotated[
        Literal["pairs", "cubes"],
        Field(description="kind ours: average over pairs, or over voxels (cubes)"),
    ] = "pairs"
    cell_m: Annotated[float, Field(ge=0.002, le=100, description="side of a voxel [m]")] = 0.1


def spatiotemporal(
    local: Float[Tensor, "m d"],
    semantic: Float[Tensor, "m d"],
    pixel: Float[Tensor, "m d"],
    text: Float[Tensor, "m d"],
    voxel: Int64[Tensor, " m"],
    config: SpatioTemporalConfig,
) -> Float[Tensor, ""]:
    """Spatio-temporal consistency loss over point-pixel pairs: this process's share of it.

    Zero, with a gradient of zero, without pairs.

    With ``a_i = exp(<x_i,t_i>/T) / Z_n`` and ``b_i = exp(<s_i,t_i>/T) / Z_n`` (``Z_n`` sums both
    kinds over voxel n), the fused feature is ``f_n = sum_i a_i x_i + b_i p_i``; ``ours`` is the
    mean of ``1 - cos(p_i, f_n)``. a, b and the p inside f are detached: otherwise the loss has a
    trivial solution. In a voxel with a single pair, f is the pixel's feature alone.
    ``paper`` and ``reference`` are CLIP2Scene's, see published.py; both are averaged over voxels.

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
    """Spatio-temporal loss summed over all voxels, computed in chunks to save memory.

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
    """Splits point-pixel pairs into chunks of whole voxels, about equally large.

    Yields the rows of each part, and their voxels numbered from 0.
    """
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
    """Spatio-temporal loss summed over the voxels of a chunk, numbered from 0."""
    voxels = int(voxel.max()) + 1
    if config.kind == "reference":
        return published.spatiotemporal_reference(local, text, voxel, voxels) * voxels
    if config.kind == "paper":
        return published.spatiotemporal_paper(local, pixel, text, voxel, voxels)
    scores = torch.stack([(pixel * text).sum(1), (semantic * text).sum(1)], 1) / config.temperature
    pairs = voxel.bincount(minlength=voxels)
    scores[:, 1] = scores[:, 1].masked_fill(pairs[voxel] == 1, -torch.inf)
    share = published.segment_softmax(scores, voxel, voxels)
    fused = local.new_zeros(voxels, local.shape[1])
    fused = fused.index_add(0, voxel, share[:, :1] * pixel + share[:, 1:] * local.detach())
    apart = 1 - F.cosine_similarity(local, fused[voxel], dim=1)
    return apart.sum() if config.mean == "pairs" else (apart / pairs[voxel]).sum()

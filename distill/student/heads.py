"""Heads of the student: linear maps from point features to embeddings or class scores.

They spare memory: a batch has tens of thousands of points and 512 dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipsweep.distill.sparse import native as sparse_native
from clipsweep.distill.student.batch import Batch

HeadName = Literal["semantic", "local", "classifier"]
_EPS = 1e-12
"""Least length of a vector that is brought to unit length, and least square of it."""


class _Unit(torch.autograd.Function):
    """Bias and L2 normalisation in place: ``(z + bias) / |z + bias|``.

    The backward pass makes one tensor of its size, not five.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, bias: Tensor) -> Tensor:
        z.add_(bias)
        length = torch.linalg.vector_norm(z, dim=1, keepdim=True).clamp_min_(_EPS)
        z.div_(length)
        ctx.mark_dirty(z)
        ctx.save_for_backward(z, length)
        return z

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor]:
        unit, length = ctx.saved_tensors
        along = torch.bmm(grads[0].unsqueeze(1), unit.unsqueeze(2)).squeeze(2)
        d_z = torch.addcmul(grads[0], unit, along, value=-1).div_(length)
        return d_z, d_z.sum(0)


class Head(nn.Linear):
    """Linear embedding or classifier head over point features.

    On the CPU by the kernels of the native sparse convolution.
    """

    def forward(self, feats: Float[Tensor, "m c"], unit: bool = False) -> Float[Tensor, "m d"]:
        """Embeddings of points in float32, L2-normalised with ``unit``."""
        if feats.device.type == "cpu":
            product = sparse_native.convolve(feats, self.weight, sparse_native.same(len(feats)))
        else:
            product = nn.functional.linear(feats, self.weight)
        return _Unit.apply(product.float(), self.bias) if unit else product.float() + self.bias

    def cosines(
        self, feats: Float[Tensor, "m c"], text: Float[Tensor, "k d"], unit: bool = True
    ) -> Float[Tensor, "m k"]:
        """Cosine similarity of points and class embeddings, without making the points' embeddings.

        With ``p = W f + b`` the product ``<p, t>`` is linear in ``f`` and ``|p|^2`` is quadratic in
        it, and ``f`` has a few dozen channels where ``p`` has 512. In float32.

        Args:
            feats: features of the points.
            text: unit embedding of each class.
            unit: divide by ``|p|``; without it the products ``<p, t>`` are given.
        """
        feats = feats.float()
        product = nn.functional.linear(feats, text @ self.weight, text @ self.bias)
        if not unit:
            return product
        across = torch.addmm(2 * (self.bias @ self.weight), feats, self.weight.T @ self.weight)
        squared = torch.linalg.vecdot(across, feats) + self.bias @ self.bias
        return product / squared.clamp_min(_EPS).sqrt().unsqueeze(1)


@dataclass(frozen=True, eq=False, slots=True)
class Embeddings:
    """Outputs of the student's heads at points: embeddings and class scores.

    None where a head was not asked or is not there.

    Attributes:
        semantic: unit vectors in the space of the class names.
        local: such vectors for the consistency in space and time.
        logits: scores of the classes by the fine-tuned classifier.
    """

    semantic: Float[Tensor, "m d"] | None = None
    local: Float[Tensor, "m d"] | None = None
    logits: Float[Tensor, "m k"] | None = None


def at_points(
    feats: Float[Tensor, "v c"], batch: Batch, points: Tensor | None
) -> Float[Tensor, "m c"]:
    """Devoxelize: features of the voxel of each point, or trilinear between voxels."""
    if batch.corner is None or batch.corner_weight is None:
        return feats.index_select(0, batch.inverse if points is None else batch.inverse[points])
    corner = batch.corner
    weight = batch.corner_weight.to(feats.dtype)
    if points is not None:
        corner = corner[points]
        weight = weight[points]
    out = feats.index_select(0, corner[:, 0]) * weight[:, :1]
    for k in range(1, 8):
        out = out + feats.index_select(0, corner[:, k]) * weight[:, k : k + 1]
    return out

"""Linear heads over point features, sparing with memory: a batch has tens of thousands of points and 512 dimensions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clipsweep.distill import sparse_native

_EPS = 1e-12


class _Unit(torch.autograd.Function):
    """``(z + bias) / |z + bias|`` in the place of ``z``; the backward pass makes one tensor of its size, not five."""

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
    """A linear map of point features; on the CPU by the kernels of the native sparse convolution."""

    def forward(self, feats: Float[Tensor, "m c"], unit: bool = False) -> Float[Tensor, "m d"]:
        """In float32, and with ``unit`` scaled to unit length."""
        if feats.device.type == "cpu":
            product = sparse_native.convolve(feats, self.weight, sparse_native.same(len(feats)))
        else:
            product = nn.functional.linear(feats, self.weight)
        return _Unit.apply(product.float(), self.bias) if unit else product.float() + self.bias

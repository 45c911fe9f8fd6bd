"""Sparse convolution without spconv: gather, multiply, scatter, with a backward pass written by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from projection import grid

CENTRE = 13
"""Offset (0, 0, 0) among the 27 of a 3^3 kernel."""


@dataclass(frozen=True, eq=False, slots=True)
class KernelMap:
    """Which input row meets which output row at each offset of a kernel.

    Attributes:
        source: input rows of each offset, None where every row meets itself.
        target: output rows of each offset, no row twice within one.
        inputs: number of input rows.
        outputs: number of output rows.
    """

    source: tuple[Int[Tensor, " p"] | None, ...]
    target: tuple[Int[Tensor, " p"] | None, ...]
    inputs: int
    outputs: int

    def reverse(self) -> KernelMap:
        """The same pairs with input and output exchanged."""
        return KernelMap(self.target, self.source, self.outputs, self.inputs)

    def __iter__(self) -> Iterator[tuple[int, Tensor | None, Tensor | None]]:
        for offset, (source, target) in enumerate(zip(self.source, self.target, strict=True)):
            if source is None or len(source):
                yield offset, source, target


def _lists(flat: Int[np.ndarray, " p"], ends: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
    return torch.from_numpy(flat.astype(np.int64)).to(device).tensor_split(list(ends[:-1]))


def submanifold_map(index: grid.CellIndex, device: torch.device) -> KernelMap:
    """The map of a 3^3 kernel that keeps the set of cells."""
    pairs = grid.neighbours(index)
    source, target = _lists(pairs.source, pairs.ends, device), _lists(pairs.target, pairs.ends, device)
    return KernelMap((*source, None, *target[::-1]), (*target, None, *source[::-1]), len(index), len(index))


def stride_map(pairs: grid.PairLists, fine: int, coarse: int, device: torch.device) -> KernelMap:
    """The map of a 2^3 kernel with stride 2; reversed, it is the inverse op's."""
    return KernelMap(_lists(pairs.source, pairs.ends, device), _lists(pairs.target, pairs.ends, device), fine, coarse)


def _take(rows: Float[Tensor, "v c"], index: Tensor | None) -> Float[Tensor, "p c"]:
    return rows if index is None else rows.index_select(0, index)


def _put(out: Float[Tensor, "v c"], index: Tensor | None, rows: Float[Tensor, "p c"]) -> None:
    if index is None:
        out.add_(rows)
    else:
        out.index_add_(0, index, rows.to(out.dtype))


class _Convolve(torch.autograd.Function):
    """``out[target] += feats[source] @ weight[k].T`` over the offsets ``k`` of a map."""

    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.pairs = pairs
        out = feats.new_zeros((pairs.outputs, weight.shape[0]), dtype=torch.float32)
        for k, source, target in pairs:
            _put(out, target, _take(feats, source) @ weight[:, k].t())
        return out.to(feats.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grads
        feats, weight = ctx.saved_tensors
        d_feats = torch.zeros_like(feats, dtype=torch.float32)
        d_weight = torch.zeros_like(weight)
        for k, source, target in ctx.pairs:
            rows = _take(grad, target)
            d_weight[:, k] = rows.t() @ _take(feats, source)
            _put(d_feats, source, rows @ weight[:, k])
        return d_feats.to(feats.dtype), d_weight, None


def convolve(
    feats: Float[Tensor, "v i"], weight: Float[Tensor, "o k0 k1 k2 i"], pairs: KernelMap
) -> Float[Tensor, "w o"]:
    """A sparse convolution; under ``torch.autocast`` its products are bf16, its sums float32."""
    weight = weight.flatten(1, 3)
    if torch.is_autocast_enabled(feats.device.type):
        dtype = torch.get_autocast_dtype(feats.device.type)
        feats, weight = feats.to(dtype), weight.to(dtype)
    with torch.autocast(feats.device.type, enabled=False):
        return _Convolve.apply(feats, weight, pairs)

"""Batch norm of sparse features, fused with the sum and the ReLU that follow it, on the CPU.

``out = relu((x - mean) * inv_std * weight + bias + add)`` in one pass over the rows; torch would
make and keep a tensor for each step.

The backward pass must know where the ReLU let a value through, and keeps as little as it can:

- Without ``add`` the value in front of the ReLU is a function of ``x``, which is kept anyway. Its
  sign is computed again, and ``out`` is not kept (``GATE_BY_INPUT``).
- With ``add`` that would take ``add`` too. ``out`` is kept instead, which the next layer keeps
  anyway as its input: the value was let through where ``out`` is positive (``GATE_BY_OUTPUT``).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, distributed, nn
from torch.nn import functional

from clipsweep.distill.sparse import norm_kernels as kernels
from clipsweep.distill.sparse.native import bits
from clipsweep.distill.sparse.threads import share


class _Recomputation(threading.local):
    """Gradient checkpointing state: whether this thread recomputes a block's forward pass.

    A thread each, because autograd may recompute in a thread of its own while another one is in a
    first forward pass.
    """

    active = False


_recomputation = _Recomputation()


@contextlib.contextmanager
def recomputing() -> Iterator[None]:
    """Gradient checkpointing: a block's second forward pass, which keeps running statistics.

    Else they would count a batch twice.
    """
    _recomputation.active = True
    try:
        yield
    finally:
        _recomputation.active = False


@dataclass(frozen=True, eq=False, slots=True)
class _Statistics:
    """Batch norm statistics: mean and inverse standard deviation of each channel.

    Attributes:
        count: rows that they were computed from, of all processes; 0: running statistics, through
            which no gradient flows.
        mean: mean of each channel.
        inv_std: ``1 / sqrt(variance + eps)``.
    """

    count: float
    mean: Float64[np.ndarray, " c"]
    inv_std: Float64[np.ndarray, " c"]


def _gather(values: Float64[np.ndarray, " k"], everywhere: bool) -> Float64[np.ndarray, "ranks k"]:
    """All-gather of values in order of rank; only this process's where not asked for."""
    if not everywhere:
        return values[None]
    ours = torch.from_numpy(values)
    theirs = [torch.empty_like(ours) for _ in range(distributed.get_world_size())]
    distributed.all_gather(theirs, ours)
    return torch.stack(theirs).numpy()


def _chunks(rows: int) -> int:
    return -(-rows // kernels.CHUNK)


def _moments(
    x: Tensor, everywhere: bool
) -> tuple[float, Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Batch norm moments by channel: number of rows, mean and sum of squared deviations.

    Of the rows of all processes or of this one. Chunks of rows are summed apart and merged in order
    (Chan et al. 1979), so that the result does not depend on the number of threads.
    """
    chunks = _chunks(len(x))
    width = x.shape[1]
    values = bits(x)
    mean = np.empty((chunks, width), np.float32)
    square = np.empty((chunks, width), np.float32)
    share(chunks, lambda first, last: kernels.moments(values, first, last, mean, square))
    size = np.full((chunks, 1), kernels.CHUNK, np.float64)
    size[-1:] -= chunks * kernels.CHUNK - len(x)
    total, centre, spread = _merged(size, mean.astype(np.float64), square.astype(np.float64))
    if not everywhere:
        return total, centre, spread
    ranks = _gather(np.concatenate([[total], centre, spread]), True)
    return _merged(ranks[:, :1], ranks[:, 1 : 1 + width], ranks[:, 1 + width :])


def _merged(
    sizes: Float64[np.ndarray, "k 1"],
    means: Float64[np.ndarray, "k c"],
    squares: Float64[np.ndarray, "k c"],
) -> tuple[float, Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Merges the moments of chunks: number of rows, mean and sum of squared deviations."""
    total = float(sizes.sum())
    centre = (sizes * means).sum(0) / max(total, 1)
    return total, centre, squares.sum(0) + (sizes * (means - centre) ** 2).sum(0)


def _factors(
    statistics: _Statistics, weight: Tensor, bias: Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, scale and bias of each channel for the batch norm kernels, in float32."""
    scale = statistics.inv_std * weight.numpy()
    return statistics.mean.astype(np.float32), scale.astype(np.float32), bias.numpy()


class _Normalise(torch.autograd.Function):
    """Batch norm, sum and ReLU with their gradient (autograd function).

    ``relu((x - mean) * inv_std * weight + bias + add)``; see the module.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        add: Tensor | None,
        relu: bool,
        statistics: _Statistics,
        everywhere: bool,
    ) -> Tensor:
        factors = _factors(statistics, weight, bias)
        out = torch.empty_like(x)
        values = bits(x)
        added = values[:0] if add is None else bits(add)
        result = bits(out)
        share(
            _chunks(len(x)),
            lambda first, last: kernels.apply(values, *factors, added, relu, first, last, result),
        )
        if not relu:
            ctx.gate = kernels.GATE_OPEN
        elif add is None:
            ctx.gate = kernels.GATE_BY_INPUT
        else:
            ctx.gate = kernels.GATE_BY_OUTPUT
        ctx.save_for_backward(x, weight, bias, out if ctx.gate == kernels.GATE_BY_OUTPUT else x[:0])
        ctx.statistics = statistics
        ctx.everywhere = everywhere
        ctx.has_add = add is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, weight, bias, out = ctx.saved_tensors
        statistics: _Statistics = ctx.statistics
        chunks = _chunks(len(x))
        values = bits(x)
        grad = bits(grads[0].to(x.dtype).contiguous())
        inputs = (values, *_factors(statistics, weight, bias), bits(out), grad, ctx.gate)

        sums = np.empty((chunks, x.shape[1]), np.float32)
        products = np.empty((chunks, x.shape[1]), np.float32)
        share(
            chunks, lambda first, last: kernels.gradient_sums(*inputs, first, last, sums, products)
        )
        d_bias = sums.sum(0, np.float64)
        d_weight = products.sum(0, np.float64) * statistics.inv_std

        line = _through_statistics(statistics, weight, d_bias, d_weight, ctx.everywhere)
        d_x = torch.empty_like(x)
        d_add = torch.empty_like(x) if ctx.has_add else None
        d_values = bits(d_x)
        d_added = values[:0] if d_add is None else bits(d_add)
        share(
            chunks,
            lambda first, last: kernels.gradient(*inputs, *line, first, last, d_values, d_added),
        )
        return (
            d_x,
            torch.from_numpy(d_weight.astype(np.float32)),
            torch.from_numpy(d_bias.astype(np.float32)),
            d_add,
            None,
            None,
            None,
        )


def _through_statistics(
    statistics: _Statistics,
    weight: Tensor,
    d_bias: Float64[np.ndarray, " c"],
    d_weight: Float64[np.ndarray, " c"],
    everywhere: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient through the batch statistics, mean and variance: slope and rest by channel.

    It is ``slope * (x - mean) + rest`` for each row, and 0 with running statistics.
    """
    if statistics.count:
        ours = np.concatenate([d_bias, d_weight])
        total, product = np.split(_gather(ours, everywhere).sum(0), 2)
    else:
        total = np.zeros_like(d_bias)
        product = np.zeros_like(d_weight)
    rows = max(statistics.count, 1)
    scale = statistics.inv_std * weight.numpy()
    slope = -scale * statistics.inv_std * product / rows
    rest = -scale * total / rows
    return slope.astype(np.float32), rest.astype(np.float32)


class Norm(nn.Module):
    """Batch norm of sparse features: ``relu(batch_norm(x) + add)``.

    Fit for one row or none, where ``nn.BatchNorm1d`` gives up. On the CPU sums do not depend on the
    number of threads.
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` turns the inner module; then the moments are those
    of all processes, with gloo on the CPU too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(channels)

    def forward(
        self, x: Float[Tensor, "v c"], relu: bool = False, add: Float[Tensor, "v c"] | None = None
    ) -> Float[Tensor, "v c"]:
        """Batch norm, then the sum and the ReLU where they are asked for.

        ``relu(batch_norm(x) + add)``.
        """
        if (
            x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.bfloat16)
            and self.batch.weight.dtype == torch.float32
        ):
            return self._by_kernels(x, relu, add)
        out = self._by_torch(x)
        out = out if add is None else out + add
        return functional.relu(out) if relu else out

    def _by_kernels(self, x: Tensor, relu: bool, add: Tensor | None) -> Tensor:
        norm = self.batch
        everywhere = (
            self.training and isinstance(norm, nn.SyncBatchNorm) and distributed.is_initialized()
        )
        statistics = self._learn(x.detach(), everywhere) if self.training else self._known()
        add = None if add is None else add.to(x.dtype).contiguous()
        return _Normalise.apply(
            x.contiguous(), norm.weight, norm.bias, add, relu, statistics, everywhere
        )

    def _by_torch(self, x: Tensor) -> Tensor:
        norm = self.batch
        if self.training and len(x) < 2 and not isinstance(norm, nn.SyncBatchNorm):
            return x * 0 + norm.bias.to(x.dtype)
        if not (self.training and _recomputation.active):
            return norm(x)
        before = [buffer.clone() for buffer in norm.buffers()]
        out = norm(x)
        for buffer, value in zip(norm.buffers(), before, strict=True):
            buffer.copy_(value)
        return out

    def _known(self) -> _Statistics:
        """Running statistics, as used in evaluation mode."""
        norm: Any = self.batch
        mean = norm.running_mean.double().numpy()
        var = norm.running_var.double().numpy()
        return _Statistics(0.0, mean, 1 / np.sqrt(var + norm.eps))

    @torch.no_grad()
    def _learn(self, x: Float[Tensor, "v c"], everywhere: bool) -> _Statistics:
        """Batch statistics of these rows; updates the running ones as ``nn.BatchNorm1d`` does."""
        norm: Any = self.batch
        count, mean, square = _moments(x.contiguous(), everywhere)
        if count > 1 and not _recomputation.active:
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(torch.from_numpy(mean).float(), norm.momentum)
            var = square / max(count - 1, 1)
            norm.running_var.lerp_(torch.from_numpy(var).float(), norm.momentum)
        return _Statistics(count, mean, 1 / np.sqrt(square / max(count, 1) + norm.eps))

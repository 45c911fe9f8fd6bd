"""Batch norm over the rows of a sparse tensor, together with what follows it.

A sum and a rectifier.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, distributed, nn
from torch.nn import functional

from clipsweep.distill.sparse import norm_kernels as kernels
from clipsweep.distill.sparse.native import bits
from clipsweep.distill.sparse.threads import share

_local = threading.local()


@contextlib.contextmanager
def recomputing() -> Iterator[None]:
    """Running statistics stay as they are within: what is computed was computed before."""
    _local.again = True
    try:
        yield
    finally:
        _local.again = False


def _gather(values: Float64[np.ndarray, " k"], everywhere: bool) -> Float64[np.ndarray, "ranks k"]:
    """The values of every process, in order of rank; only ours when it is not asked for."""
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
    """Number of rows, mean and sum of squared deviations, summed chunk by chunk in order (Chan
    et al. 1979).
    """
    chunks = _chunks(len(x))
    width = x.shape[1]
    values = bits(x)
    mean = np.empty((chunks, width), np.float32)
    square = np.empty((chunks, width), np.float32)
    share(chunks, lambda first, last: kernels.moments(values, first, last, mean, square))
    size = np.full((chunks, 1), kernels.CHUNK, np.float64)
    size[-1:] -= chunks * kernels.CHUNK - len(x)

    def merge(
        n: np.ndarray, means: np.ndarray, squares: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        total = float(n.sum())
        centre = (n * means).sum(0) / max(total, 1)
        return total, centre, squares.sum(0) + (n * (means - centre) ** 2).sum(0)

    total, centre, spread = merge(size, mean.astype(np.float64), square.astype(np.float64))
    if not everywhere:
        return total, centre, spread
    ranks = _gather(np.concatenate([[total], centre, spread]), True)
    return merge(ranks[:, :1], ranks[:, 1 : 1 + width], ranks[:, 1 + width :])


class _Normalise(torch.autograd.Function):
    """``relu((x - mean) * inv_std * weight + bias + add)``.

    ``count`` rows made the moments, 0 if none of these did.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        add: Tensor | None,
        relu: bool,
        moments: tuple[float, np.ndarray, np.ndarray],
        everywhere: bool,
    ) -> Tensor:
        _, mean, inv_std = moments
        scale = inv_std * weight.numpy()
        factors = mean.astype(np.float32), scale.astype(np.float32), bias.numpy()
        out = torch.empty_like(x)
        values = bits(x)
        result = bits(out)
        extra = values[:0] if add is None else bits(add)
        share(
            _chunks(len(x)),
            lambda first, last: kernels.apply(values, *factors, extra, relu, first, last, result),
        )
        ctx.relu = 0 if not relu else kernels.BY_INPUT if add is None else kernels.BY_OUTPUT
        ctx.save_for_backward(x, weight, bias, out if ctx.relu == kernels.BY_OUTPUT else x[:0])
        ctx.moments = moments
        ctx.everywhere = everywhere
        ctx.add = add is not None
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        x, weight, bias, out = ctx.saved_tensors
        count, mean, inv_std = ctx.moments
        values = bits(x)
        grad = bits(grads[0].to(x.dtype).contiguous())
        chunks = _chunks(len(x))
        width = x.shape[1]
        sums = np.empty((chunks, width), np.float32)
        products = np.empty((chunks, width), np.float32)
        scale = inv_std * weight.numpy()
        factors = mean.astype(np.float32), scale.astype(np.float32), bias.numpy()
        common = values, *factors, bits(out), grad, ctx.relu
        share(
            chunks, lambda first, last: kernels.gradient_sums(*common, first, last, sums, products)
        )
        ours = np.concatenate([sums.sum(0, np.float64), products.sum(0, np.float64) * inv_std])
        total, product = (
            np.split(_gather(ours, ctx.everywhere).sum(0), 2) if count else np.zeros((2, width))
        )
        slope = -scale * inv_std * product / max(count, 1)
        rest = -scale * total / max(count, 1)
        line = slope.astype(np.float32), rest.astype(np.float32)
        d_x = torch.empty_like(x)
        d_add = torch.empty_like(x) if ctx.add else None
        also = values[:0] if d_add is None else bits(d_add)
        written = bits(d_x)
        share(
            chunks, lambda first, last: kernels.gradient(*common, *line, first, last, written, also)
        )
        d_bias, d_weight = (torch.from_numpy(part.astype(np.float32)) for part in np.split(ours, 2))
        return d_x, d_weight, d_bias, d_add, None, None, None


class Norm(nn.Module):
    """``relu(batch_norm(x) + add)``, fit for one row or none, where ``nn.BatchNorm1d`` gives up.

    On the CPU sums do not depend on the number of threads.
    ``nn.SyncBatchNorm.convert_sync_batchnorm`` turns the inner module; then the moments are those
    of all processes, with gloo on the CPU too.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.batch = nn.BatchNorm1d(channels)

    def forward(
        self, x: Float[Tensor, "v c"], relu: bool = False, add: Float[Tensor, "v c"] | None = None
    ) -> Float[Tensor, "v c"]:
        """``add`` has the shape of ``x``; see the class."""
        norm: Any = self.batch
        if (
            x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.bfloat16)
            and norm.weight.dtype == torch.float32
        ):
            everywhere = (
                self.training
                and isinstance(norm, nn.SyncBatchNorm)
                and distributed.is_initialized()
            )
            moments = self._learn(x.detach(), everywhere) if self.training else self._known()
            add = None if add is None else add.to(x.dtype).contiguous()
            return _Normalise.apply(
                x.contiguous(), norm.weight, norm.bias, add, relu, moments, everywhere
            )
        if self.training and len(x) < 2 and not isinstance(norm, nn.SyncBatchNorm):
            out = x * 0 + norm.bias.to(x.dtype)
        else:
            again = self.training and getattr(_local, "again", False)
            known = [buffer.clone() for buffer in norm.buffers()] if again else []
            out = norm(x)
            for buffer, value in zip(norm.buffers(), known, strict=False):
                buffer.copy_(value)
        out = out if add is None else out + add
        return functional.relu(out) if relu else out

    def _known(self) -> tuple[float, np.ndarray, np.ndarray]:
        norm: Any = self.batch
        mean = norm.running_mean.double().numpy()
        var = norm.running_var.double().numpy()
        return 0.0, mean, 1 / np.sqrt(var + norm.eps)

    @torch.no_grad()
    def _learn(
        self, x: Float[Tensor, "v c"], everywhere: bool
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Moments of these rows, remembered as ``nn.BatchNorm1d`` does."""
        norm: Any = self.batch
        count, mean, square = _moments(x.contiguous(), everywhere)
        if count > 1 and not getattr(_local, "again", False):
            norm.num_batches_tracked += 1
            norm.running_mean.lerp_(torch.from_numpy(mean).float(), norm.momentum)
            norm.running_var.lerp_(
                torch.from_numpy(square / max(count - 1, 1)).float(), norm.momentum
            )
        return count, mean, 1 / np.sqrt(square / max(count, 1) + norm.eps)

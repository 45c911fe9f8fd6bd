"""Sparse convolution on the CPU without spconv, with a backward pass written by hand.

Output rows are split into tiles, and a tile is computed by one thread from first to last, offset by
offset: no two threads write one row, and the order of every sum is the same for any number of
threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from clipsweep.distill.sparse import native_kernels as kernels
from clipsweep.distill.sparse.threads import share
from clipsweep.projection.grid import PairLists

TILE_ROWS = 512
"""Output rows of a tile: its float32 sums stay in a core's second cache up to 256 channels."""


_CACHE = 1 << 20  # bytes of rows that a core keeps at hand


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Kernel map (rulebook): input and output row of each pair at each kernel offset.

    Attributes:
        pairs: the pairs, offset by offset.
        inputs: number of input rows.
        outputs: number of output rows.
        mirrored: the pairs of offset ``k`` are those of the last offset minus ``k``, turned round.
    """

    pairs: PairLists
    inputs: int
    outputs: int
    mirrored: bool = False

    @cached_property
    def forward(self) -> PairLists:
        """Kernel map of the forward pass: sorted by tile of output rows."""
        return self.pairs.tile(self.outputs, TILE_ROWS)

    @cached_property
    def backward(self) -> PairLists:
        """Kernel map of the backward pass: transposed, sorted by tile of input rows.

        Of a mirrored map with the offsets in opposite order.
        """
        return self.forward if self.mirrored else self.pairs.reverse().tile(self.inputs, TILE_ROWS)

    @cached_property
    def reverse(self) -> KernelMap:
        """Kernel map of the inverse (transposed) convolution."""
        turned = KernelMap(self.pairs.reverse(), self.outputs, self.inputs)
        turned.__dict__["forward"] = self.backward
        turned.__dict__["backward"] = self.forward
        return turned


def bits(values: Float[Tensor, "..."]) -> NDArray[Any]:
    """NumPy view of a tensor's memory, bfloat16 as int16."""
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).detach().numpy()


def _rows(feats: Float[Tensor, "v c"]) -> NDArray[Any]:
    """Feature rows in the memory layout of the kernels: float32, or bfloat16 pairs in an int32."""
    if feats.dtype == torch.float32:
        return bits(feats)
    even = torch.nn.functional.pad(feats, (0, 1)) if feats.shape[1] % 2 else feats
    return even.detach().view(torch.int32).numpy()


def _room(rows: int, columns: int, like: Tensor, *before: int) -> Tensor:
    """Allocates a packed matrix of feature rows.

    Columns up to whole vectors, zero there, and two rows of bfloat16 in one.
    """
    whole = -(-columns // kernels.LANES) * kernels.LANES
    half = like.dtype == torch.bfloat16
    make = torch.empty if whole == columns else torch.zeros
    return make(
        (*before, -(-rows // 2) if half else rows, whole),
        dtype=torch.int32 if half else torch.float32,
    )


def _convolve(
    feats: Tensor, weight: NDArray[Any], tiles: PairLists, outputs: int
) -> Float[Tensor, "w o"]:
    """Gather, multiply, scatter: sums ``feats[source] @ weight[k]`` into the target rows.

    ``weight (k,i,o) f32`` may have any strides.
    """
    offsets, depth, width = weight.shape
    packed = _room(depth, width, feats, offsets).numpy()
    share(offsets, lambda first, last: kernels.pack_weight(weight, first, last, packed))
    out = feats.new_empty((outputs, width))
    rows = _rows(feats)
    result = bits(out)
    share(
        (len(tiles.starts) - 1) // offsets,
        lambda first, last: kernels.convolve(
            rows, packed, tiles.starts, tiles.source, tiles.target, TILE_ROWS, first, last, result
        ),
    )
    return out


def _pieces(pairs: PairLists, count: int) -> list[tuple[int, int]]:
    """Splits kernel offsets into ranges with about equally many pairs, the largest first."""
    offsets = len(pairs.starts) - 1
    part = pairs.starts * count // max(1, pairs.starts[-1])
    ends = [k for k in range(1, offsets) if part[k] != part[k - 1]] + [offsets]
    pieces = zip([0, *ends], ends, strict=False)
    return sorted(pieces, key=lambda piece: int(pairs.starts[piece[0]] - pairs.starts[piece[1]]))


def _weight_gradient(
    feats: Tensor, grad: Tensor, pairs: KernelMap, d_weight: Float[Tensor, "o k i"]
) -> None:
    rows = bits(feats)
    grads = bits(grad)
    out = d_weight.numpy()
    tiles = pairs.forward
    pieces = _pieces(pairs.pairs, 2 * torch.get_num_threads())
    span = max(1, _CACHE // (TILE_ROWS * (feats.shape[1] + grad.shape[1]) * feats.element_size()))

    def some(first: int, last: int) -> None:
        left = _room(kernels.CHUNK, grad.shape[1], feats)[:, : grad.shape[1]].contiguous().numpy()
        right = _room(kernels.CHUNK, feats.shape[1], feats).numpy()
        for piece in pieces[first:last]:
            kernels.weight_gradient(
                rows,
                grads,
                tiles.starts,
                tiles.source,
                tiles.target,
                span,
                *piece,
                left,
                right,
                out,
            )

    share(len(pieces), some)


class _Convolution(torch.autograd.Function):
    """Sparse convolution on the CPU: ``out[target] += feats[source] @ weight[:, k].T``.

    Over the offsets ``k`` of a kernel map.
    """

    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, pairs: KernelMap) -> Tensor:
        ctx.save_for_backward(feats, weight)
        ctx.pairs = pairs
        return _convolve(feats, bits(weight).transpose(1, 2, 0), pairs.forward, pairs.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, None]:
        feats, weight = ctx.saved_tensors
        pairs: KernelMap = ctx.pairs
        grad = grads[0].contiguous()
        d_feats = None
        d_weight = None
        if ctx.needs_input_grad[0]:
            turned = bits(weight).transpose(1, 0, 2)[:: -1 if pairs.mirrored else 1]
            d_feats = _convolve(grad, turned, pairs.backward, pairs.inputs)
        if ctx.needs_input_grad[1]:
            d_weight = torch.empty_like(weight)
            _weight_gradient(feats, grad, pairs, d_weight)
        return d_feats, d_weight, None


def _by_torch(
    feats: Tensor, weight: Float[Tensor, "o k i"], pairs: KernelMap
) -> Float[Tensor, "w o"]:
    """Sparse convolution in plain torch, for other devices and types.

    The tests compare the kernels with it.
    """
    out = feats.new_zeros((pairs.outputs, weight.shape[0]))
    source, target = (
        torch.from_numpy(side).to(feats.device) for side in (pairs.pairs.source, pairs.pairs.target)
    )
    for k in range(weight.shape[1]):
        at = slice(int(pairs.pairs.starts[k]), int(pairs.pairs.starts[k + 1]))
        out = out.index_add(0, target[at], feats.index_select(0, source[at]) @ weight[:, k].t())
    return out


def same(rows: int) -> KernelMap:
    """Kernel map of a pointwise (1^3) convolution: each voxel is paired with itself."""
    row = np.arange(rows, dtype=np.int32)
    return KernelMap(PairLists(row, row, np.array([0, rows])), rows, rows, mirrored=True)


def convolve(
    feats: Float[Tensor, "v i"], weight: Float[Tensor, "o *k i"], pairs: KernelMap
) -> Float[Tensor, "w o"]:
    """Sparse convolution over a kernel map, with gradients.

    Under ``torch.autocast`` in bfloat16, rows are bfloat16 and products of bfloat16; sums and the
    weight's gradient are float32 still.
    """
    device = feats.device.type
    weight = weight.reshape(len(weight), -1, weight.shape[-1])
    if torch.is_autocast_enabled(device):
        feats = feats.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):
        if (
            device == "cpu"
            and feats.dtype in (torch.float32, torch.bfloat16)
            and weight.dtype == torch.float32
        ):
            return _Convolution.apply(feats.contiguous(), weight, pairs)
        return _by_torch(feats, weight.to(feats.dtype), pairs)

"""Sparse convolution layers: submanifold, strided, inverse and pointwise.

Computed by spconv on CUDA and by native.py elsewhere, with the same weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from clipsweep.distill.sparse import native as sparse_native
from clipsweep.distill.sparse import spconv as sparse_spconv
from clipsweep.distill.sparse.native import KernelMap
from clipsweep.projection import grid

Backend = Literal["auto", "spconv", "native"]


class Sites:
    """Active voxels with their hash, kernel maps and coarser level (like an indice_key).

    Layers and levels of a network share one, so that each map is built once per batch.

    Args:
        coords: batch index and integer coordinates, no row twice.
        backend: "auto" is spconv on CUDA and native elsewhere.

    Raises:
        ModuleNotFoundError: spconv is asked for and not installed.
        ValueError: a row is there twice or is out of range (see ``projection.grid.index_coords``).
    """

    def __init__(self, coords: Int32[Tensor, "v 4"], backend: Backend = "auto") -> None:
        self.coords = coords
        wants = backend == "spconv" or (backend == "auto" and coords.is_cuda)
        self.level = sparse_spconv.base_level(coords) if wants and len(coords) else None
        """spconv's view of the voxels; None with the native backend."""
        self._coarser: Sites | None = None
        self._index: grid.CellIndex | None = None

    def __len__(self) -> int:
        return len(self.coords)

    @cached_property
    def submanifold(self) -> KernelMap:
        """Kernel map of the submanifold (3^3) convolution."""
        index = self._index or grid.index_coords(self.coords.cpu().numpy())
        return KernelMap(grid.neighbours(index), len(self), len(self), mirrored=True)

    @cached_property
    def same(self) -> KernelMap:
        """Kernel map of the pointwise (1^3) convolution."""
        return sparse_native.same(len(self))

    @cached_property
    def stride(self) -> KernelMap:
        """Kernel map of the strided (2^3) convolution, which makes the coarser voxels."""
        index, pairs = grid.coarsen(self.coords.cpu().numpy())
        coarser = Sites(torch.from_numpy(index.coords()).to(self.coords.device), "native")
        coarser._index = index
        self._coarser = coarser
        return KernelMap(pairs, len(self), len(index))

    @property
    def coarser(self) -> Sites:
        """Voxel grid downsampled by two, once a strided convolution has made it."""
        assert self._coarser is not None
        return self._coarser

    def extend(self, level: sparse_spconv.Level) -> None:
        """Keeps the downsampled voxels that spconv found, unless they are known."""
        if self._coarser is None:
            coarser = Sites(level.coords(), "native")
            coarser.level = level
            self._coarser = coarser


@dataclass(frozen=True, eq=False, slots=True)
class SparseTensor:
    """Sparse tensor: features of active voxels.

    Attributes:
        feats: one row for each voxel.
        sites: the voxels.
    """

    feats: Float[Tensor, "v c"]
    sites: Sites

    def with_feats(self, feats: Float[Tensor, "v d"]) -> SparseTensor:
        """Sparse tensor with other features on the same voxels."""
        return SparseTensor(feats, self.sites)


class _Kernel(nn.Module):
    """Weight of a sparse convolution in spconv's layout ``[out, k0, k1, k2, in]``.

    Initialised like ``nn.Linear`` over all its inputs.
    """

    size = 3

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, *(self.size,) * 3, in_channels))
        bound = 1 / math.sqrt(self.size**3 * in_channels)
        nn.init.uniform_(self.weight, -bound, bound)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[-1]}, {self.weight.shape[0]}"


class SubMConv3d(_Kernel):
    """Submanifold convolution, kernel 3."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Submanifold convolution: features on the same voxels."""
        if x.sites.level is not None:
            return x.with_feats(sparse_spconv.submanifold(x.feats, self.weight, x.sites.level))
        return x.with_feats(sparse_native.convolve(x.feats, self.weight, x.sites.submanifold))


class Down(_Kernel):
    """Strided convolution (SparseConv3d, kernel 2, stride 2).

    Every voxel of twice the size that holds an active one becomes active.
    """

    size = 2

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Strided convolution: features on voxels of twice the edge length."""
        if x.sites.level is not None:
            feats, level = sparse_spconv.down(x.feats, self.weight, x.sites.level)
            x.sites.extend(level)
        else:
            feats = sparse_native.convolve(x.feats, self.weight, x.sites.stride)
        return SparseTensor(feats, x.sites.coarser)


class Up(_Kernel):
    """Inverse convolution of ``Down`` (SparseInverseConv3d, kernel 2).

    Each fine voxel gets its coarse voxel's features times the weight of its octant.
    """

    size = 2

    def forward(self, x: SparseTensor, fine: Sites) -> SparseTensor:
        """Inverse convolution: features on ``fine``, the voxels that ``x`` was downsampled from."""
        if x.sites.level is not None:
            return SparseTensor(sparse_spconv.up(x.feats, self.weight, x.sites.level), fine)
        return SparseTensor(sparse_native.convolve(x.feats, self.weight, fine.stride.reverse), fine)


class Pointwise(_Kernel):
    """Pointwise convolution, kernel 1: the same linear map in every voxel."""

    size = 1

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Pointwise convolution: features on the same voxels."""
        if x.sites.level is not None:
            return x.with_feats(nn.functional.linear(x.feats, self.weight.flatten(1)))
        return x.with_feats(sparse_native.convolve(x.feats, self.weight, x.sites.same))

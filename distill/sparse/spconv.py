"""Sparse convolution by spconv, which is imported only when this backend is used."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

# spconv counts from 0: a shift by whole multiples keeps floor(c / 2) the same through six levels
_ALIGN = 64


@dataclass(frozen=True, eq=False, slots=True)
class Level:
    """Active voxels as a spconv tensor, at one resolution level of the network.

    Attributes:
        tensor: a SparseConvTensor without useful features; its ``indice_dict`` is shared by all
            levels of a batch.
        origin: coordinates of its cell (0, 0, 0).
        depth: how many times the cells were halved.
    """

    tensor: Any
    origin: tuple[int, int, int]
    depth: int

    def coords(self) -> Int32[Tensor, "v 4"]:
        """Batch index and coordinates of the voxels, without spconv's shift."""
        return self.tensor.indices + torch.tensor(
            (0, *self.origin), dtype=torch.int32, device=self.tensor.indices.device
        )


def _spconv() -> Any:
    try:
        import spconv.pytorch as spconv
    except ImportError as error:
        raise ModuleNotFoundError(
            f"model.backend=spconv: spconv cannot be imported ({error}); "
            "install spconv-cu120 (or the build for your CUDA), or set model.backend=native"
        ) from error
    return spconv


def base_level(coords: Int32[Tensor, "v 4"]) -> Level:
    """Makes the ``SparseConvTensor`` of the finest voxels of a batch.

    Raises:
        ModuleNotFoundError: spconv is not installed.
    """
    spconv = _spconv()
    low = coords[:, 1:].amin(0)
    high = coords[:, 1:].amax(0)
    origin = torch.div(low, _ALIGN, rounding_mode="floor") * _ALIGN
    shape = (torch.div(high - origin, _ALIGN, rounding_mode="floor") + 1) * _ALIGN
    shifted = coords.clone()
    shifted[:, 1:] -= origin
    none = torch.empty((len(coords), 1), device=coords.device)
    tensor = spconv.SparseConvTensor(none, shifted, shape.tolist(), int(coords[:, 0].max()) + 1)
    return Level(tensor, tuple(origin.tolist()), 0)


@functools.cache
def _layer(kind: str, in_channels: int, out_channels: int, depth: int, cuda: bool) -> nn.Module:
    """Builds a spconv layer without a weight of its own; ``functional_call`` lends it one."""
    spconv = _spconv()
    algo = None if cuda else spconv.ConvAlgo.Native
    with torch.device("meta"):
        if kind == "submanifold":
            return spconv.SubMConv3d(
                in_channels,
                out_channels,
                3,
                padding=1,
                bias=False,
                indice_key=f"sub{depth}",
                algo=algo,
            )
        if kind == "down":
            return spconv.SparseConv3d(
                in_channels,
                out_channels,
                2,
                stride=2,
                bias=False,
                indice_key=f"down{depth}",
                algo=algo,
            )
        return spconv.SparseInverseConv3d(
            in_channels, out_channels, 2, bias=False, indice_key=f"down{depth}", algo=algo
        )


def _call(kind: str, feats: Tensor, weight: Tensor, level: Level, depth: int) -> Any:
    layer = _layer(kind, weight.shape[-1], weight.shape[0], depth, feats.is_cuda)
    out = torch.func.functional_call(
        layer, {"weight": weight}, (level.tensor.replace_feature(feats),)
    )
    level.tensor.indice_dict.update(out.indice_dict)
    return out


def submanifold(feats: Float[Tensor, "v i"], weight: Tensor, level: Level) -> Float[Tensor, "v o"]:
    """Submanifold (3^3) convolution by spconv."""
    return _call("submanifold", feats, weight, level, level.depth).features


def down(
    feats: Float[Tensor, "v i"], weight: Tensor, level: Level
) -> tuple[Float[Tensor, "w o"], Level]:
    """Strided (2^3) convolution by spconv, and the downsampled voxels.

    spconv allows it once for each level.
    """
    out = _call("down", feats, weight, level, level.depth)
    tensor = out.replace_feature(out.features.detach()[:, :1])
    tensor.indice_dict = level.tensor.indice_dict
    origin = (level.origin[0] // 2, level.origin[1] // 2, level.origin[2] // 2)
    return out.features, Level(tensor, origin, level.depth + 1)


def up(feats: Float[Tensor, "w i"], weight: Tensor, coarse: Level) -> Float[Tensor, "v o"]:
    """Inverse (2^3) convolution by spconv, back to the voxels ``coarse`` was downsampled from."""
    return _call("up", feats, weight, coarse, coarse.depth - 1).features

"""Student network: residual sparse 3D U-Net (MinkUNet) over voxels, with heads."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int64, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from clipsweep.distill.sparse.norm import Norm, recomputing
from clipsweep.distill.sparse.ops import (
    Backend,
    Down,
    Pointwise,
    Sites,
    SparseTensor,
    SubMConv3d,
    Up,
)
from clipsweep.distill.student.batch import Batch
from clipsweep.distill.student.heads import Embeddings, Head, HeadName, at_points


@dataclass(frozen=True)
class ModelConfig:
    """Settings of the student network and its voxelization."""

    size: Annotated[
        Literal["tiny", "unet14", "unet34"],
        Field(description="network: number of layers and channels"),
    ] = "unet14"
    sweeps: Annotated[
        int,
        Field(ge=1, le=11, description="sweeps merged into one input point cloud"),
    ] = 1
    voxel_m: Annotated[float, Field(ge=0.002, le=100, description="edge of a voxel [m]")] = 0.1
    features: Annotated[
        tuple[str, ...],
        Field(description="features of a point: intensity, height, range, age, offset"),
    ] = ("intensity", "height", "range", "offset")
    reduce: Annotated[
        Literal["first", "mean", "max"],
        Field(description="what a voxel keeps of its points' features"),
    ] = "mean"
    backend: Annotated[
        Literal["auto", "spconv", "native"],
        Field(
            description="what computes the sparse convolutions; auto: spconv on CUDA, else native",
        ),
    ] = "auto"
    max_voxels: Annotated[
        int,
        Field(
            ge=0,
            le=1_000_000_000,
            description="largest number of voxels of a frame in training; 0 is no limit",
        ),
    ] = 120_000
    trilinear: Annotated[
        bool,
        Field(
            description="interpolate a point's features between voxels instead of taking "
            "its own voxel's"
        ),
    ] = False
    checkpointing: Annotated[
        bool,
        Field(
            description="gradient checkpointing: less memory, each residual block computed twice"
        ),
    ] = False


@dataclass(frozen=True, slots=True)
class Size:
    """Network size: channels of the stem and of the four stages down and up, blocks a stage."""

    stem: int
    widths: tuple[int, int, int, int, int, int, int, int]
    blocks: tuple[int, int, int, int, int, int, int, int]


SIZES: dict[str, Size] = {
    "tiny": Size(16, (16, 32, 48, 64, 48, 32, 32, 32), (1, 1, 1, 1, 1, 1, 1, 1)),
    "unet14": Size(32, (32, 64, 128, 256, 256, 128, 96, 96), (1, 1, 1, 1, 1, 1, 1, 1)),
    "unet34": Size(32, (32, 64, 128, 256, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2)),
}
"""Sizes of the U-Net: ``unet34`` is MinkUNet34C, ``unet14`` the same with one block a stage."""


class Residual(nn.Module):
    """Residual block: two submanifold convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = SubMConv3d(in_channels, out_channels)
        self.norm1 = Norm(out_channels)
        self.conv2 = SubMConv3d(out_channels, out_channels)
        self.norm2 = Norm(out_channels)
        self.around: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.around = Pointwise(in_channels, out_channels)
            self.norm = Norm(out_channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Residual block: features on the same voxels."""
        around = (
            x.feats if isinstance(self.around, nn.Identity) else self.norm(self.around(x).feats)
        )
        x = x.with_feats(self.norm1(self.conv1(x).feats, relu=True))
        return x.with_feats(self.norm2(self.conv2(x).feats, relu=True, add=around))


class Stage(nn.Module):
    """U-Net stage: downsampling or upsampling (``resample``), then residual blocks.

    On the way up the skip features are concatenated.
    """

    def __init__(
        self,
        resample: Down | Up,
        channels: int,
        skip: int,
        width: int,
        blocks: int,
        checkpointing: bool,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.resample = resample
        self.norm = Norm(channels)
        self.blocks = nn.ModuleList(
            Residual(channels + skip if i == 0 else width, width) for i in range(blocks)
        )

    def forward(self, x: SparseTensor, skip: SparseTensor | None = None) -> SparseTensor:
        """Features on the level below, or with ``skip`` on the level of ``skip`` above."""
        x = self.resample(x) if skip is None else self.resample(x, skip.sites)
        feats = self.norm(x.feats, relu=True)
        x = x.with_feats(
            feats if skip is None else torch.cat([feats, skip.feats.to(feats.dtype)], 1)
        )
        for block in self.blocks:
            again = self.checkpointing and self.training
            x = checkpoint(block, x, use_reentrant=False, context_fn=_twice) if again else block(x)
        return x


def _twice() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), recomputing()


class UNet(nn.Module):
    """Residual sparse 3D U-Net of four levels (MinkUNet)."""

    def __init__(self, size: Size, in_channels: int, checkpointing: bool = False) -> None:
        super().__init__()
        self.scale = Norm(in_channels)  # metres, seconds and shares to one scale
        self.scale.requires_grad_(False)  # the first convolution can learn what it could
        self.stem1 = SubMConv3d(in_channels, size.stem)
        self.norm1 = Norm(size.stem)
        self.stem2 = SubMConv3d(size.stem, size.stem)
        self.norm2 = Norm(size.stem)
        widths = (size.stem, *size.widths)
        blocks = size.blocks
        self.down = nn.ModuleList(
            Stage(Down(widths[i], widths[i]), widths[i], 0, widths[i + 1], blocks[i], checkpointing)
            for i in range(4)
        )
        self.up = nn.ModuleList(
            Stage(
                Up(widths[i], widths[i + 1]),
                widths[i + 1],
                widths[7 - i],
                widths[i + 1],
                blocks[i],
                checkpointing,
            )
            for i in range(4, 8)
        )
        self.channels = widths[-1]

    def forward(self, x: SparseTensor) -> SparseTensor:
        """U-Net features on the voxels of ``x``."""
        x = x.with_feats(self.norm1(self.stem1(x.with_feats(self.scale(x.feats))).feats, relu=True))
        levels = [x.with_feats(self.norm2(self.stem2(x).feats, relu=True))]
        for stage in self.down:
            levels.append(stage(levels[-1]))
        x = levels.pop()
        for stage in self.up:
            x = stage(x, levels.pop())
        return x


class Student(nn.Module):
    """The student network: sparse 3D U-Net with heads.

    Args:
        size: a name in ``SIZES``.
        in_channels: columns of the batch's features, ``distill.student.batch.channels(features)``.
        text_dim: dimension of the class names' embeddings.
        classes: number of classes of the classifier, None before fine-tuning.
        backend: who computes the sparse convolutions.
        checkpointing: keep less memory and compute each residual block twice.

    Attributes:
        text_head: the head whose embeddings are compared with the class names: the one that was
            trained.
    """

    text_head: Literal["semantic", "local"] = "semantic"

    def __init__(
        self,
        size: str,
        in_channels: int,
        text_dim: int,
        classes: int | None = None,
        backend: Backend = "auto",
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"model.size={size}: choose from {', '.join(SIZES)}")
        self.backend: Backend = backend
        self.unet = UNet(SIZES[size], in_channels, checkpointing)
        self.semantic = Head(self.unet.channels, text_dim)
        self.local = Head(self.unet.channels, text_dim)
        self.classifier = None if classes is None else Head(self.unet.channels, classes)

    def forward(
        self,
        batch: Batch,
        points: Int64[Tensor, " m"] | None = None,
        heads: Collection[HeadName] = ("semantic", "local", "classifier"),
    ) -> Embeddings:
        """Embeddings and logits of some points of a batch.

        Args:
            batch: the frames.
            points: rows among the batch's points; all when None.
            heads: which to compute; a classifier that is not there is passed over.
        """
        feats = self.features(batch, points)
        return Embeddings(
            self.semantic(feats, unit=True) if "semantic" in heads else None,
            self.local(feats, unit=True) if "local" in heads else None,
            self.classifier(feats)
            if self.classifier is not None and "classifier" in heads
            else None,
        )

    def features(
        self, batch: Batch, points: Int64[Tensor, " m"] | None = None
    ) -> Float[Tensor, "m c"]:
        """The U-Net's features at some points of a batch, at all when ``points`` is None."""
        return at_points(self.voxel_features(batch), batch, points)

    def voxel_features(self, batch: Batch) -> Float[Tensor, "v c"]:
        """The U-Net's features of each voxel."""
        return self.unet(SparseTensor(batch.feats, Sites(batch.coords, self.backend))).feats

    @torch.no_grad()
    def classify(
        self, batch: Batch, text: Float[Tensor, "k d"] | None = None
    ) -> UInt8[Tensor, " n"]:
        """Semantic segmentation of a batch: the class of every point.

        By the classifier, or with ``text`` by the nearest class embedding.

        The argmax of ``<p / |p|, t>`` is that of ``<p, t>``, so the head ``text_head`` and the
        class embeddings melt into one small linear map, and no embedding of a point is ever made.

        Raises:
            ValueError: there is neither ``text`` nor a classifier.
        """
        feats = self.voxel_features(batch).float()
        if text is not None:
            text = text.to(feats)
            head = self._named_head()
            scores = functional.linear(feats, text @ head.weight, text @ head.bias)
        elif self.classifier is not None:
            scores = functional.linear(feats, self.classifier.weight, self.classifier.bias)
        else:
            raise ValueError("a student without a classifier needs the class embeddings: pass text")
        if batch.corner is None:
            return scores.argmax(1).to(torch.uint8)[batch.inverse]
        return at_points(scores, batch, None).argmax(1).to(torch.uint8)

    @torch.no_grad()
    def probabilities(
        self, batch: Batch, text: Float[Tensor, "k d"] | None = None, scale: float = 1.0
    ) -> Float[Tensor, "n k"]:
        """Class probabilities of every point of a batch: the softmax of its class scores.

        Args:
            batch: the frames.
            text: unit embedding of each class; the scores are then ``scale * cos(p, t)``, as in
                training. Without it they are the classifier's.
            scale: inverse temperature of the cosines.

        Raises:
            ValueError: there is neither ``text`` nor a classifier.
        """
        feats = self.voxel_features(batch).float()
        if text is not None:
            scores = scale * self._named_head().cosines(feats, text.to(feats))
        elif self.classifier is not None:
            scores = functional.linear(feats, self.classifier.weight, self.classifier.bias)
        else:
            raise ValueError("a student without a classifier needs the class embeddings: pass text")
        return at_points(scores, batch, None).softmax(1)

    @torch.no_grad()
    def lengths(self, batch: Batch) -> Float[Tensor, " v"]:
        """Length of each voxel's embedding, which the cosine with a class name divides by."""
        feats = self.voxel_features(batch).float()
        return self._named_head()(feats).norm(dim=1)

    def _named_head(self) -> Head:
        """Head whose embeddings are compared with class names."""
        return {"semantic": self.semantic, "local": self.local}[self.text_head]

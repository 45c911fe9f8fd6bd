"""Patch features of timm vision transformers (DINO, DINOv2 and others).

As a teacher of their own and as CLIP's proxy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from clipsweep.distill.teacher.images import (
    all_or_raise,
    at_least_one,
    autocast,
    decoders,
    in_batches,
    input_size,
    normalised,
    to_device,
    whole_cells,
)
from clipsweep.distill.teacher.weights import file_digest, fitted, hub_file, read_weights
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import NONE, Camera, PixelLabels

_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, eq=False, slots=True)
class VitSource:
    """Source of a timm ViT: name, preprocessing and weights file.

    Attributes:
        name: timm name, with its tag.
        mean: RGB mean of its input, for values 0..1.
        std: RGB standard deviation, for values 0..1.
        patch: side of a patch [px].
        checkpoint: file of the weights.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    patch: int
    checkpoint: Path

    def digest(self) -> str:
        """Digest (sha256) of the name, the preprocessing and the weights."""
        head = f"{self.name} {self.mean} {self.std}".encode()
        return hashlib.sha256(head + file_digest(self.checkpoint)).hexdigest()


def find_vit(name: str, weights: str = "") -> VitSource:
    """Finds a timm ViT: its patch size, preprocessing and weights.

    Args:
        name: timm name with tag, such as ``vit_base_patch8_224.dino`` or
            ``vit_small_patch14_dinov2.lvd142m``.
        weights: local checkpoint; empty takes the tag's from the hub's cache or the hub.

    Raises:
        BadInput: timm has no such ViT, or its weights are neither local nor to be had.
    """
    import timm

    if not timm.is_model(name):
        raise BadInput(
            name,
            "timm has no such model",
            "timm.list_models('vit*', pretrained=True) lists the names",
        )
    try:
        with torch.device("meta"):
            network = timm.create_model(name, num_classes=0)
    except RuntimeError as error:  # a tag that the model has not
        raise BadInput(name, f"timm cannot make it ({error})", "correct the tag") from None
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    if patch is None or not hasattr(network, "num_prefix_tokens"):
        raise BadInput(name, "is no ViT: it has no patch tokens", "take a vit_* model")
    config: Any = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    if not weights and not config.hf_hub_id:
        raise BadInput(
            name, "timm has no weights for it", "add a tag to the name, or give a local checkpoint"
        )
    checkpoint = Path(weights) if weights else hub_file(config.hf_hub_id, _HUB_WEIGHTS)
    if not checkpoint.is_file():
        raise BadInput(checkpoint, "is no file", f"give a local checkpoint of {name}")
    return VitSource(name, tuple(config.mean), tuple(config.std), int(patch[0]), checkpoint)


class PatchVit(nn.Module):
    """Timm ViT that outputs the features of its patches.

    Raises:
        BadInput: the weights do not fit.
    """

    def __init__(self, source: VitSource) -> None:
        super().__init__()
        import timm

        network = timm.create_model(source.name, num_classes=0, dynamic_img_size=True)
        own = network.state_dict()
        state = {
            name: value for name, value in read_weights(source.checkpoint).items() if name in own
        }
        self.network: Any = fitted(network, state, source.checkpoint, source.name)
        self._source = source

    def forward(self, images: Float[Tensor, "n 3 height width"]) -> Float[Tensor, "n h w d"]:
        """Features after the last norm; class and register tokens dropped.

        Args:
            images: RGB 0..1; stretched to whole patches where their sides are none.
        """
        size = images.shape[2:]
        patch = self._source.patch
        whole = whole_cells((size[0], size[1]), patch)
        if whole != tuple(size):
            images = F.interpolate(
                images, whole, mode="bicubic", antialias=True, align_corners=False
            )
        tokens = self.network.forward_features(
            normalised(images, self._source.mean, self._source.std)
        )
        tokens = self.network.fc_norm(tokens[:, self.network.num_prefix_tokens :])
        return tokens.unflatten(1, (whole[0] // patch, whole[1] // patch))


@dataclass(frozen=True)
class VitFeaturesConfig:
    """Settings of the vision-only teacher: patch features of a timm ViT, without classes."""

    model: Annotated[
        str,
        Field(description="timm name with tag, such as vit_small_patch14_dinov2.lvd142m"),
    ] = "vit_large_patch14_dinov2.lvd142m"
    weights: Annotated[str, Field(description="local checkpoint; empty takes the tag's")] = ""
    size_hw: Annotated[
        tuple[Annotated[int, Field(ge=0, le=100_000)], Annotated[int, Field(ge=0, le=100_000)]],
        Field(
            description="height and width that images are stretched to; 0,0 takes 224,416 rounded "
            "to whole patches [px]",
        ),
    ] = (0, 0)
    batch: Annotated[int, Field(ge=1, le=4096, description="images per forward pass")] = 16


class VitFeatures:
    """A vision-only teacher: unit patch features for feature regression, no labels.

    Args:
        config: the model and its input.
        device: where the network runs.
        threads: JPEG decoders; 0 takes the machine's cores, at most 16.

    Raises:
        BadInput: unknown model, weights that cannot be had, or a size that is no multiple of the
            patch.
    """

    def __init__(self, config: VitFeaturesConfig, *, device: str = "cpu", threads: int = 0) -> None:
        self._source = find_vit(config.model, config.weights)
        self._size_hw = input_size(config.size_hw, self._source.patch, "teacher.features.size_hw")
        self._batch = at_least_one(config.batch)
        self._device = torch.device(device)
        self._threads = decoders(threads)

    @property
    def text(self) -> Float32[np.ndarray, "0 d"]:
        """Empty text embeddings, in the width of the features: there are no classes."""
        return np.zeros((0, self._network.network.num_features), np.float32)

    def digest(self) -> str:
        """Digest (sha256) of the weights and the input size."""
        return hashlib.sha256(f"{self._source.digest()} {self._size_hw}".encode()).hexdigest()

    def __call__(self, cameras: Sequence[Camera]) -> list[PixelLabels]:
        """Dense features of camera images, in order.

        Raises:
            BadInput: an image cannot be used.
        """
        return all_or_raise(self.stream(cameras))

    def stream(self, cameras: Iterable[Camera]) -> Iterator[PixelLabels | BadInput]:
        """Streams dense features of any number of camera images, in order.

        An image that cannot be used leaves its error in its place.
        """
        return in_batches(
            cameras, self._size_hw, self._batch, self._threads, self._launch, self._collect
        )

    @cached_property
    def _network(self) -> PatchVit:
        return PatchVit(self._source).to(self._device)

    @torch.inference_mode()
    def _launch(self, images: UInt8[np.ndarray, "n height width 3"]) -> Float[Tensor, "n h w d"]:
        with autocast(self._device):
            features = self._network(to_device(images, self._device))
        return F.normalize(features.float(), dim=-1).half()

    @staticmethod
    def _collect(features: Float[Tensor, "n h w d"]) -> list[PixelLabels]:
        none = np.full(features.shape[1:3], NONE, np.uint8)
        return [
            PixelLabels(none, np.zeros(none.shape, np.float16), one)
            for one in features.cpu().numpy()
        ]

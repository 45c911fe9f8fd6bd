"""MaskCLIP teacher: zero-shot 2D semantic segmentation from CLIP's dense features."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Float32, UInt8
from pydantic import Field
from torch import Tensor

from clipsweep.distill.teacher.classify import Scorer
from clipsweep.distill.teacher.dense_features import (
    Dense,
    DenseResNet,
    DenseVit,
    LastBlock,
    choose_last_block,
    stride_of,
)
from clipsweep.distill.teacher.images import (
    all_or_raise,
    at_least_one,
    autocast,
    decoders,
    in_batches,
    input_size,
    normalised,
    to_device,
)
from clipsweep.distill.teacher.text import (
    Encoder,
    Prompts,
    Vocabulary,
    cached,
    embed,
    group_names,
    sentences,
    words_of,
)
from clipsweep.distill.teacher.tiles import Tiles
from clipsweep.distill.teacher.vit import PatchVit, find_vit
from clipsweep.distill.teacher.weights import build_clip, clip_config, clip_tokenizer, find_clip
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Camera, PixelLabels

_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class MaskClipConfig:
    """Settings of the zero-shot teacher: a CLIP model and its dense features."""

    model: Annotated[
        str,
        Field(description="open_clip name, hf-hub:OWNER/NAME or local-dir:FOLDER"),
    ] = "ViT-B-16-quickgelu"
    weights: Annotated[
        str,
        Field(
            description="open_clip tag or local checkpoint; empty: openai, or the folder's own",
        ),
    ] = ""
    last_block: Annotated[
        LastBlock,
        Field(
            description="what the image encoder's last block computes for dense features; pure: "
            "the attention's values alone (MaskCLIP's paper); residual: these with the block's "
            "residual and MLP (its code, CLIP2Scene's too); naclip: attention among neighbouring "
            "patches (NACLIP); proxy: attention of another ViT (ProxyCLIP); pool: a ResNet's "
            "attention pooling at every cell; auto: naclip for a ViT, pool for a ResNet"
        ),
    ] = "auto"
    proxy: Annotated[
        str,
        Field(description="timm ViT whose attention is used with last_block=proxy"),
    ] = "vit_base_patch8_224.dino"
    proxy_weights: Annotated[
        str,
        Field(description="local checkpoint of that ViT; empty takes its tag's"),
    ] = ""
    size_hw: Annotated[
        tuple[Annotated[int, Field(ge=0, le=100_000)], Annotated[int, Field(ge=0, le=100_000)]],
        Field(
            description="height and width that images are stretched to; 0,0 takes 224,416 rounded "
            "to whole patches [px]",
        ),
    ] = (0, 0)
    tile_hw: Annotated[
        tuple[Annotated[int, Field(ge=0, le=100_000)], Annotated[int, Field(ge=0, le=100_000)]],
        Field(description="size of tiles laid over size_hw; 0,0 takes all at once [px]"),
    ] = (0, 0)
    tile_overlap: Annotated[
        float,
        Field(ge=0, le=0.9, description="fraction of a tile that its neighbour repeats"),
    ] = 0.5
    templates: Annotated[
        Literal["reference", "short", "plain"],
        Field(description="prompt templates that class names are put into"),
    ] = "reference"
    min_score: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="confidence below which a pixel gets no label; labels.prompts may "
            "set it by class",
        ),
    ] = 0.0
    key_smoothing: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="MaskCLIP's key smoothing: patches below this confidence average "
            "the scores of patches with similar keys; 0 is off",
        ),
    ] = 0.0
    denoising: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="MaskCLIP's prompt denoising: a class is dropped from an image "
            "where no pixel is this confident of it; 0 is off",
        ),
    ] = 0.0
    upsample: Annotated[
        int,
        Field(
            ge=1,
            le=32,
            description="rows and columns of pixel labels for each of the feature map, between "
            "whose cells class probabilities are interpolated; 1 is off",
        ),
    ] = 4
    batch: Annotated[int, Field(ge=1, le=4096, description="images per forward pass")] = 16
    keep_features: Annotated[
        bool,
        Field(description="store dense features beside the labels"),
    ] = False


class MaskClip:
    """Zero-shot 2D semantic segmentation by CLIP: a class for every pixel of a grid.

    Networks are built when they are first needed; everything that can be refused without them is
    refused here. Labels are those of the batch they were made in: other batch sizes or devices may
    change the last bits of a score.

    Args:
        config: the model, and how its last block is used.
        prompts: the classes' names.
        device: where the networks run.
        threads: JPEG decoders; 0 takes the machine's cores, at most 16.
        cache: folder that text embeddings are kept in.

    Raises:
        BadInput: unknown model or weights, a ``last_block`` that is not for its tower, or sizes
            that are no whole patches.
    """

    def __init__(
        self,
        config: MaskClipConfig,
        prompts: Prompts,
        *,
        device: str = "cpu",
        threads: int = 0,
        cache: Path | None = None,
    ) -> None:
        self._config = config
        self._last_block: LastBlock = choose_last_block(
            config.model, clip_config(config.model)["model_cfg"], config.last_block
        )
        self._source = find_clip(config.model, config.weights)
        self._proxy_source = None
        if self._last_block == "proxy":
            self._proxy_source = find_vit(config.proxy, config.proxy_weights)
        stride = stride_of(self._source.config)
        self._size_hw = input_size(config.size_hw, stride, "teacher.maskclip.size_hw")
        unit = math.lcm(stride, self._proxy_source.patch) if self._proxy_source else stride
        tile_hw = (config.tile_hw[0], config.tile_hw[1])
        self._tiles = Tiles.over(self._size_hw, tile_hw, config.tile_overlap, unit)
        self._names, self._group = group_names(prompts.classes, prompts.negatives)
        self._templates = sentences(config.templates)
        self._floor = _floor(prompts, config.min_score)
        _check_share("teacher.maskclip.key_smoothing", config.key_smoothing)
        _check_share("teacher.maskclip.denoising", config.denoising)
        self._batch = at_least_one(config.batch)
        self._device = torch.device(device)
        self._threads = decoders(threads)
        self._cache = cache

    def digest(self) -> str:
        """Digest (sha256) of the weights and of all settings that decide the pixel labels.

        Batch and device are left out.
        """
        scoring = [
            self._floor.tolist(),
            self._config.key_smoothing,
            self._config.denoising,
            self._config.upsample,
            self._config.keep_features,
        ]
        return _digest(
            [self.feature_digest(), self._names, self._group.tolist(), self._templates, scoring]
        )

    def feature_digest(self) -> str:
        """Digest (sha256) of the weights and settings that decide the dense features.

        Where it is equal, `relabel` may read them under other names.
        """
        proxy = self._proxy_source.digest() if self._proxy_source else ""
        return _digest(
            [
                self._source.digest(),
                self._last_block,
                proxy,
                self._tiles.top,
                self._tiles.left,
                self._size_hw,
            ]
        )

    @property
    def text(self) -> Float32[np.ndarray, "c d"]:
        """Unit text embedding of each class: the mean over its names."""
        return self.vocabulary.of_classes()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Text embeddings of all class names, the negatives last.

        Raises:
            BadInput: the model's vocabulary has none of a name's words; single unknown words give a
                warning.
        """
        key = _digest([self._source.digest(), self._names, self._templates])
        embedding = cached(self._cache, key, len(self._names), self._embed)
        return Vocabulary(
            embedding, self._group, len(self._floor) - int(np.isinf(self._floor).sum())
        )

    def __call__(self, cameras: Sequence[Camera]) -> list[PixelLabels]:
        """Pixel labels of camera images, in order.

        Raises:
            BadInput: an image cannot be used.
        """
        return all_or_raise(self.stream(cameras))

    def stream(self, cameras: Iterable[Camera]) -> Iterator[PixelLabels | BadInput]:
        """Streams pixel labels of any number of camera images, in order.

        An image that cannot be used leaves its error in its place.

        Batches span frames and images decoded ahead of the network: give a whole scene at
        once.
        """
        return in_batches(
            cameras, self._size_hw, self._batch, self._threads, self._launch, self._collect
        )

    def features(self, images: UInt8[np.ndarray, "n height width 3"]) -> Float[Tensor, "n h w d"]:
        """Unit dense features of RGB images of the network's input size, on the device."""
        return self._dense(images).feature

    @torch.inference_mode()
    def _dense(self, images: UInt8[np.ndarray, "n h w 3"]) -> Dense:
        """Unit dense features and unit keys of RGB images."""
        return self._tiles.read(to_device(images, self._device), self._network)

    @torch.inference_mode()
    def relabel(self, feature: Float16[np.ndarray, "h w d"]) -> PixelLabels:
        """Relabels an image from its cached dense features, under this teacher's class names.

        Raises:
            BadInput: key smoothing is on; keys are not kept.
        """
        if self._config.key_smoothing > 0:
            raise BadInput(
                "teacher.maskclip.key_smoothing",
                "needs the images again: keys are not kept",
                "set it to 0",
            )
        unit = torch.from_numpy(feature).to(self._device).float()
        label, score = self._scorer(unit[None], None)
        return PixelLabels(
            label[0].cpu().numpy(),
            score[0].cpu().numpy(),
            feature if self._config.keep_features else None,
        )

    @cached_property
    def _model(self) -> Any:
        return build_clip(self._source).to(device=self._device, memory_format=torch.channels_last)

    @cached_property
    def _tower(self) -> DenseVit | DenseResNet:
        visual = self._model.visual
        if self._last_block == "pool":
            return DenseResNet(visual)
        return DenseVit(visual, self._last_block)

    @cached_property
    def _proxy(self) -> PatchVit | None:
        return PatchVit(self._proxy_source).to(self._device) if self._proxy_source else None

    @cached_property
    def _scorer(self) -> Scorer:
        names, group, floor = (
            torch.from_numpy(array).to(self._device)
            for array in (self.vocabulary.embedding, self._group, self._floor)
        )
        scale = float(self._model.logit_scale.exp())
        own = self._config
        return Scorer(names, group, floor, scale, own.key_smoothing, own.denoising, own.upsample)

    def _embed(self) -> Float32[np.ndarray, "names d"]:
        encode = Encoder(self._model, clip_tokenizer(self._source), self._device)
        for name in self._names:
            _check_words(name, encode.unknown(name))
        return embed(encode, self._names, self._templates)

    def _network(self, images: Float[Tensor, "n 3 h w"]) -> Dense:
        """One forward pass over RGB images 0..1."""
        with autocast(self._device):
            proxy = self._proxy(images) if self._proxy is not None else None
            dense: Dense = self._tower(
                normalised(images, self._source.mean, self._source.std), proxy
            )
        return dense

    @torch.inference_mode()
    def _launch(self, images: UInt8[np.ndarray, "n h w 3"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Starts the forward pass: labels, scores and, if kept, features, still on the device."""
        dense = self._dense(images)
        label, score = self._scorer(dense.feature, dense.key)
        return label, score, dense.feature.half() if self._config.keep_features else None

    @staticmethod
    def _collect(launched: tuple[Tensor, Tensor, Tensor | None]) -> list[PixelLabels]:
        label, score = (part.cpu().numpy() for part in launched[:2])
        feature = [None] * len(label) if launched[2] is None else launched[2].cpu().numpy()
        return [PixelLabels(*one) for one in zip(label, score, feature, strict=True)]


def _floor(prompts: Prompts, min_score: float) -> Float32[np.ndarray, " groups"]:
    """Confidence threshold of each class; infinite for negatives, which are no labels."""
    classes = len(prompts.classes)
    asked = min_score if prompts.min_score is None else prompts.min_score
    own = np.asarray(asked, np.float32)
    if own.shape not in ((), (classes,)) or not ((own >= 0) & (own <= 1)).all():
        raise BadInput(
            "teacher.maskclip.min_score",
            f"{asked} is not in 0..1, one for all or one for each class",
        )
    negatives = np.full(len(prompts.negatives), np.inf, np.float32)
    return np.append(np.broadcast_to(own, classes), negatives)


def _check_words(name: str, unknown: Sequence[str]) -> None:
    """Checks the words of a class name against the model's vocabulary; warns of unknown ones.

    A name without a letter, or with unknown words only, is refused.
    """
    lost = [word for word in unknown if word.lower() not in _ARTICLES]
    nothing = lost and all(word in lost or word.lower() in _ARTICLES for word in words_of(name))
    if nothing or not any(letter.isalpha() for letter in name):
        raise BadInput(
            "labels",
            f"{name!r} means nothing to this model",
            "use words of its vocabulary",
        )
    if not lost:
        return
    warnings.warn(f"{', '.join(lost)} in {name!r} means nothing to this model", stacklevel=2)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise BadInput(name, f"{value} is not in 0..1")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()

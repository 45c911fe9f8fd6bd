"""MaskCLIP: an image-text model read densely, so that every patch of an image gets the class that it looks like."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from distill import text
from distill.images import decode, prefetch
from distill.readings import DenseResNet, DenseVit, Reading, choose_reading
from distill.weights import Source, build_clip, find_clip
from projection.errors import BadInput
from projection.frames import NONE, Camera, PixelLabels

_DEFAULT_HW = (224, 416)  # what CLIP2Scene feeds for nuScenes


class MaskClip:
    """A teacher that names patches with a CLIP model.

    The model is built when it is first needed; everything that can be refused without it is refused here.

    Args:
        model: open_clip name, ``hf-hub:owner/name`` or ``local-dir:folder``.
        weights: tag or local checkpoint; the last two bring their own.
        prompts: for each class, its names; the best-scoring one speaks for the class.
        negatives: names whose patches get no label.
        reading: how the last block is read, see `DenseVit`.
        size_hw: input size of the network [px]; (0, 0) takes 224 x 416, rounded to whole patches.
        templates: set of sentences that names are put into.
        min_score: below this confidence there is no label; one for all classes or one each.
        batch: images per forward pass.
        device: where the network runs.
        keep_features: whether labels carry the dense features.
        threads: JPEG decoders; 0 takes the machine's cores, at most 16.

    Raises:
        BadInput: unknown model or weights, a reading that the tower has not, a size that is no multiple of its patch.
    """

    def __init__(
        self,
        *,
        model: str,
        weights: str = "",
        prompts: Sequence[Sequence[str]],
        negatives: Sequence[str] = (),
        reading: Reading = "auto",
        size_hw: tuple[int, int] = (0, 0),
        templates: str = "reference",
        min_score: float | Sequence[float] = 0.0,
        batch: int = 16,
        device: str = "cpu",
        keep_features: bool = False,
        threads: int = 0,
    ) -> None:
        self._source: Source = find_clip(model, weights)
        self._reading = choose_reading(model, self._source.config, reading)
        self._size_hw = _whole_patches(size_hw, _stride(self._source.config))
        self._names, self._groups = text.group_names(prompts, negatives)
        self._classes, self._negatives = len(prompts), len(negatives)
        self._templates = text.templates(templates)
        self._min_score = np.broadcast_to(np.asarray(min_score, np.float32), self._classes)
        self._batch, self._device, self._keep_features = batch, torch.device(device), keep_features
        self._threads = threads or min(16, os.cpu_count() or 1)

    def digest(self) -> str:
        """sha256 of the weights' bytes and of all that decides what the labels are; the device is left out."""
        return _digest([self.feature_digest(), self._names, self._groups.tolist(), self._templates, self._min_score.tolist()])

    def feature_digest(self) -> str:
        """sha256 of what decides the dense features: equal ones may be read again under other names."""
        return _digest([self._source.digest(), self._reading, self._size_hw])

    @property
    def text(self) -> Float32[np.ndarray, "c d"]:
        """Unit text embedding of each class: the mean over its names."""
        return self.vocabulary.of_classes()

    @cached_property
    def vocabulary(self) -> text.Vocabulary:
        """All names, the negatives last, with their embeddings."""
        import open_clip

        tokenizer = open_clip.get_tokenizer(self._source.name)
        names = text.embed(lambda t: self._model.encode_text(tokenizer(t).to(self._device)), self._names, self._templates)
        return text.Vocabulary(names, self._groups, self._classes)

    @cached_property
    def _model(self) -> Any:
        return build_clip(self._source).to(self._device)

    @cached_property
    def _tower(self) -> DenseVit | DenseResNet:
        visual = self._model.visual
        return DenseResNet(visual) if self._reading == "pool" else DenseVit(visual, self._reading)

    def __call__(self, cameras: Sequence[Camera]) -> list[PixelLabels]:
        """Labels of images, in order.

        Raises:
            BadInput: an image cannot be used.
        """
        return [labels for batch in self._batches(cameras) for labels in self._label(batch)]

    def _batches(self, cameras: Iterable[Camera]) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        waiting = prefetch(cameras, lambda c: decode(c, self._size_hw), self._threads, 2 * self._batch)
        while images := [future.result() for future in islice(waiting, self._batch)]:
            yield np.stack(images)

    @torch.inference_mode()
    def features(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n h w d"]:
        """Unit dense features of RGB images of the network's input size."""
        x = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) * 255 for v in (self._source.mean, self._source.std))
        half = torch.autocast("cuda", torch.bfloat16) if self._device.type == "cuda" else nullcontext()
        with half:
            dense = self._tower((x - mean) / std)
        return F.normalize(dense.feature.float(), dim=-1)

    @torch.inference_mode()
    def _label(self, images: UInt8[np.ndarray, "n h w 3"]) -> Iterator[PixelLabels]:
        features = self.features(images)
        label, score = self._decide(features)
        kept = features.half().cpu().numpy() if self._keep_features else [None] * len(images)
        for one in zip(label, score, kept, strict=True):
            yield PixelLabels(*one)

    def _decide(self, features: Float[Tensor, "n h w d"]) -> tuple[np.ndarray, np.ndarray]:
        """Class and confidence of each patch; 255 and 0 where a negative or too little confidence wins."""
        names = torch.from_numpy(self.vocabulary.embedding).to(features)
        group = torch.from_numpy(self._groups).to(features.device)
        scores = text.group_max(features @ names.T, group, self._classes + self._negatives)
        confidence, winner = (scores * self._model.logit_scale.exp()).softmax(-1).max(-1)
        label, score = winner.cpu().numpy(), confidence.cpu().numpy()
        floor = np.append(self._min_score, np.full(self._negatives, np.inf, np.float32))
        lost = score < floor[label]
        return np.where(lost, NONE, label).astype(np.uint8), np.where(lost, 0, score).astype(np.float16)


def _stride(config: Any) -> int:
    vision = config["vision_cfg"]
    return 32 if isinstance(vision["layers"], list | tuple) else int(vision.get("patch_size", 16))


def _whole_patches(size_hw: tuple[int, int], stride: int) -> tuple[int, int]:
    """The size, or the default rounded to whole patches; refused when it is not whole."""
    height, width = (max(1, round(side / stride)) * stride for side in (size_hw if any(size_hw) else _DEFAULT_HW))
    if any(size_hw) and (height, width) != tuple(size_hw):
        raise BadInput(
            "teacher.size_hw", f"{tuple(size_hw)} is no multiple of the patch, {stride}", f"({height}, {width}) is"
        )
    return height, width


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()

"""Zero-shot classification of dense CLIP features: class, confidence and thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float16, Int64, UInt8
from torch import Tensor
from torch.nn import functional as F

from clipsweep.distill.teacher.text import group_max
from clipsweep.projection.frames import NONE

_DENOISING_SCALE = 100.0  # prompt denoising is defined at this scale, whatever the model's own


@dataclass(frozen=True, eq=False, slots=True)
class Scorer:
    """Zero-shot classifier of feature map cells, and of pixels between them, by text similarity.

    Attributes:
        names: unit text embedding of each name.
        group: group of each name; the first ones are the classes, the rest negatives.
        floor: confidence below which a group gives no label; infinite for negatives.
        scale: what cosines are multiplied by before the softmax (CLIP's logit scale).
        key_smoothing: cells under this confidence get the average of those with like keys; 0 = off.
        denoising: groups that reach this confidence nowhere in an image are dropped from it; 0 =
            off.
        upsample: labels have this many rows and columns for each of the feature map.
    """

    names: Float[Tensor, "names d"]
    group: Int64[Tensor, " names"]
    floor: Float[Tensor, " groups"]
    scale: float
    key_smoothing: float = 0.0
    denoising: float = 0.0
    upsample: int = 1

    def __call__(
        self, features: Float[Tensor, "n h w d"], keys: Float[Tensor, "n h w k"] | None
    ) -> tuple[UInt8[Tensor, "n rows columns"], Float16[Tensor, "n rows columns"]]:
        """Zero-shot class and confidence of each pixel of a grid finer than the feature map.

        Confidences are interpolated between the map's cells. 255 and 0 where a negative wins or
        the confidence is too little.

        Args:
            features: unit features.
            keys: unit keys of the last block, for smoothing.
        """
        scores = group_max(features @ self.names.T, self.group, len(self.floor))
        kept = self._kept(scores)
        confidence = (
            (self.scale * scores).masked_fill(~kept, -torch.inf).softmax(-1).nan_to_num(0.0)
        )
        if self.key_smoothing > 0:
            assert keys is not None
            confidence = _smoothed(confidence, keys, self.key_smoothing)
        confidence = _upsampled(confidence, self.upsample)
        score, winner = confidence.max(-1)
        lost = (score < self.floor[winner]) | (score == 0)
        return winner.masked_fill(lost, NONE).to(torch.uint8), score.masked_fill(lost, 0.0).half()

    def _kept(self, scores: Float[Tensor, "n h w groups"]) -> Bool[Tensor, "n 1 1 groups"]:
        """Prompt denoising (MaskCLIP): which groups an image keeps; it may lose them all."""
        if self.denoising <= 0:
            return scores.new_ones(len(scores), 1, 1, scores.shape[-1], dtype=torch.bool)
        return (_DENOISING_SCALE * scores).softmax(-1).amax((1, 2), keepdim=True) >= self.denoising


def _upsampled(
    confidence: Float[Tensor, "n h w groups"], factor: int
) -> Float[Tensor, "n rows columns groups"]:
    """Bicubic interpolation between the centres of cells; beyond the outermost these repeat.

    Bilinear interpolation shrinks what is a few cells large, the same way in every image: pixels
    gain from it, labels fused by votes lose (LOG.md).
    """
    if factor == 1:
        return confidence
    channels_first = confidence.permute(0, 3, 1, 2)
    finer = F.interpolate(channels_first, scale_factor=factor, mode="bicubic", align_corners=False)
    return finer.permute(0, 2, 3, 1).clamp(0, 1)  # a cubic overshoots


def _smoothed(
    confidence: Float[Tensor, "n h w groups"], keys: Float[Tensor, "n h w k"], below: float
) -> Float[Tensor, "n h w groups"]:
    """Key smoothing (MaskCLIP): averages unsure cells over cells with similar keys.

    Unsure cells get the mean of all cells, weighted by the cosine of their keys.

    Weights are cosines of keys along their channels, negative ones set to 0, made to sum to 1 for
    each cell. The published code normalises along the cells instead.
    """
    out = confidence.clone()
    # one image at a time: cells x cells weights
    for own, key, image in zip(confidence, keys, out, strict=True):
        unit = F.normalize(key.flatten(0, 1), dim=-1)
        unsure = own.flatten(0, 1).amax(-1) < below
        weight = (unit[unsure] @ unit.T).clamp_min(0)
        image.view(-1, own.shape[-1])[unsure] = (
            weight / weight.sum(-1, keepdim=True) @ own.flatten(0, 1)
        )
    return out

"""Batches of voxelized sweeps, collated for the sparse network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int32, Int64
from torch import Tensor

from clipsweep.distill.student.voxels import Voxels


@dataclass(frozen=True, eq=False, slots=True)
class SweepSet:
    """Sweeps of one frame, each with its own augmentation; they share its pixels and voxels.

    Attributes:
        sweeps: each sweep as voxels.
        pixel: unit features of the pixels that its pairs point at, or None.
        left_out: reasons why older sweeps are missing.
    """

    sweeps: Sequence[Voxels]
    pixel: Float16[np.ndarray, "q d"] | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Collated batch of voxelized frames for the sparse network, one after the other.

    Attributes:
        coords: frame's place in the batch and coordinates of each voxel.
        feats: features of each voxel.
        inverse: voxel of each point.
        pair_point: row of the point of each target.
        pair_label: its class.
        frames: ids of the frames.
        truncated: number of voxels left out to keep the limit.
        corner: the eight voxels around each point, where trilinear features are asked for.
        corner_weight: their weights, which sum to 1.
        pixel: unit features of pixels, where there are any.
        pair_pixel: row of each target's pixel in ``pixel``.
        voxel_id: each target's voxel over all merged sweeps, numbered from 0, where an objective
            needs it.
        left_out: reasons why older sweeps are missing.
        unlabelled: whether the targets are pseudo-labels beside the human ones of other batches.
    """

    coords: Int32[Tensor, "v 4"]
    feats: Float32[Tensor, "v c"]
    inverse: Int64[Tensor, " n"]
    pair_point: Int64[Tensor, " m"]
    pair_label: Int64[Tensor, " m"]
    frames: tuple[str, ...]
    truncated: int
    corner: Int64[Tensor, "n 8"] | None = None
    corner_weight: Float32[Tensor, "n 8"] | None = None
    pixel: Float16[Tensor, "q d"] | None = None
    pair_pixel: Int64[Tensor, " m"] | None = None
    voxel_id: Int64[Tensor, " m"] | None = None
    left_out: tuple[str, ...] = ()
    unlabelled: bool = False

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        new: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **new)

    def to(self, device: torch.device | str) -> Batch:
        """Copies the batch to a device, without waiting where the memory is pinned."""
        wait = torch.device(device).type == "cpu"
        return self._each(lambda value: value.to(device, non_blocking=not wait))

    def pin_memory(self) -> Batch:
        """Copies the batch to pinned (page-locked) memory."""
        return self._each(Tensor.pin_memory)


def collate(frames: Sequence[Voxels]) -> Batch:
    """Collates voxelized frames into a batch, numbering voxels and points through.

    Raises:
        ValueError: there is no frame, or there are more than 128.
    """
    if not 0 < len(frames) <= 128:
        raise ValueError(f"a batch has 1 to 128 frames, not {len(frames)}")
    voxels = [len(frame.coords) for frame in frames]
    points = [len(frame.inverse) for frame in frames]
    corners = [frame.corners for frame in frames if frame.corners is not None]
    corner = None
    corner_weight = None
    if corners:
        corner = _numbered_through([[voxel] for voxel, _ in corners], voxels)
        corner_weight = _joined([weight for _, weight in corners])
    return Batch(
        coords=_with_place([frame.coords for frame in frames]),
        feats=_joined([frame.feats for frame in frames]),
        inverse=_numbered_through([[frame.inverse] for frame in frames], voxels),
        pair_point=_numbered_through([[frame.pair_point] for frame in frames], points),
        pair_label=_joined([frame.pair_label for frame in frames]),
        frames=tuple(frame.frame for frame in frames),
        truncated=sum(frame.truncated for frame in frames),
        corner=corner,
        corner_weight=corner_weight,
    )


def collate_groups(groups: Sequence[SweepSet]) -> Batch:
    """Collates the sweeps of frames, numbering the frames' pixels and voxels through too.

    Raises:
        ValueError: see ``collate``.
    """
    pixel, pair_pixel = _pixels(groups)
    return replace(
        collate([sweep for group in groups for sweep in group.sweeps]),
        pixel=pixel,
        pair_pixel=pair_pixel,
        voxel_id=_voxel_ids(groups),
        left_out=tuple(reason for group in groups for reason in group.left_out),
    )


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _with_place(coords: Sequence[Int32[np.ndarray, "_ 3"]]) -> Int32[Tensor, "v 4"]:
    """Voxel coordinates of all frames, with the batch index in front."""
    place = np.arange(len(coords), dtype=np.int32)
    place = np.repeat(place, [len(own) for own in coords])
    return torch.from_numpy(np.column_stack([place, np.concatenate(coords)]))


def _numbered_through(
    groups: Sequence[Sequence[np.ndarray]], counts: Sequence[int]
) -> Int64[Tensor, "m ..."]:
    """Concatenates index arrays with offsets, so that they count through all groups.

    Args:
        groups: arrays of indices.
        counts: how many things the indices of each group point at.
    """
    starts = np.cumsum([0, *counts])
    return _joined(
        [
            np.add(part, start, dtype=np.int64)
            for parts, start in zip(groups, starts, strict=False)
            for part in parts
        ]
    )


def _pixels(groups: Sequence[SweepSet]) -> tuple[Tensor | None, Tensor | None]:
    """Concatenates the frames' pixel features, and offsets each pair's row in them.

    None where a frame has none.
    """
    pixels = [group.pixel for group in groups if group.pixel is not None]
    if not pixels or len(pixels) < len(groups):
        return None, None
    rows = [[s.pair_pixel for s in group.sweeps if s.pair_pixel is not None] for group in groups]
    return _joined(pixels), _numbered_through(rows, [len(pixel) for pixel in pixels])


def _voxel_ids(groups: Sequence[SweepSet]) -> Int64[Tensor, " m"] | None:
    """Renumbers each pair's voxel over all merged sweeps, where a loss needs it.

    A voxel whose pairs were all left out gets no number.
    """
    ids = [[s.voxel_id for s in group.sweeps if s.voxel_id is not None] for group in groups]
    if not any(ids):
        return None
    counts = [max((int(own.max(initial=-1)) + 1 for own in group), default=0) for group in ids]
    with_gaps = _numbered_through(ids, counts).numpy()
    present = np.zeros(sum(counts), np.int64)
    present[with_gaps] = 1
    number = np.cumsum(present) - 1
    return torch.from_numpy(number[with_gaps])

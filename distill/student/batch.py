"""Collates voxelized sweeps into a batch."""

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
    """Sweeps of one frame, each with its own augmentation, that share the frame's pixels and
    voxels.

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
    """Frames put one after the other, for the student.

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

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        new: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **new)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; copies from pinned memory do not wait."""
        wait = torch.device(device).type == "cpu"
        return self._each(lambda value: value.to(device, non_blocking=not wait))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)


def collate(frames: Sequence[Voxels]) -> Batch:
    """Puts frames together, numbering voxels and points through.

    Raises:
        ValueError: there is no frame, or there are more than 128.
    """
    if not 0 < len(frames) <= 128:
        raise ValueError(f"a batch has 1 to 128 frames, not {len(frames)}")
    voxels = np.cumsum([0] + [len(frame.coords) for frame in frames])
    points = np.cumsum([0] + [len(frame.inverse) for frame in frames])
    coords = np.empty((voxels[-1], 4), np.int32)
    for i, frame in enumerate(frames):
        coords[voxels[i] : voxels[i + 1], 0] = i
        coords[voxels[i] : voxels[i + 1], 1:] = frame.coords

    def join(
        parts: Sequence[np.ndarray], shift: Sequence[int] | np.ndarray | None = None
    ) -> Tensor:
        if shift is None:
            return torch.from_numpy(np.concatenate(parts))
        return torch.from_numpy(
            np.concatenate(
                [np.add(part, s, dtype=np.int64) for part, s in zip(parts, shift, strict=False)]
            )
        )

    around = [frame.corners for frame in frames if frame.corners is not None]
    return Batch(
        torch.from_numpy(coords),
        join([frame.feats for frame in frames]),
        join([frame.inverse for frame in frames], voxels),
        join([frame.pair_point for frame in frames], points),
        join([frame.pair_label for frame in frames]),
        tuple(frame.frame for frame in frames),
        sum(frame.truncated for frame in frames),
        join([cell for cell, _ in around], voxels) if around else None,
        join([weight for _, weight in around]) if around else None,
    )


def collate_groups(groups: Sequence[SweepSet]) -> Batch:
    """Puts the sweeps of frames together as ``collate`` does, numbering pixels and voxels through.

    Raises:
        ValueError: see ``collate``.
    """
    batch = collate([sweep for group in groups for sweep in group.sweeps])
    batch = replace(batch, left_out=tuple(reason for group in groups for reason in group.left_out))
    pixels = [group.pixel for group in groups if group.pixel is not None]
    if len(pixels) == len(groups):
        starts = np.cumsum([0, *map(len, pixels)])
        rows = [
            sweep.pair_pixel + start
            for group, start in zip(groups, starts, strict=False)
            for sweep in group.sweeps
            if sweep.pair_pixel is not None
        ]
        batch = replace(
            batch,
            pixel=torch.from_numpy(np.concatenate(pixels)),
            pair_pixel=torch.from_numpy(np.concatenate(rows)),
        )
    voxels = [[s.voxel_id for s in group.sweeps if s.voxel_id is not None] for group in groups]
    if any(voxels):
        sizes = [
            max((int(voxel.max(initial=-1)) + 1 for voxel in group), default=0) for group in voxels
        ]
        starts = np.cumsum([0, *sizes])
        wide = np.concatenate(
            [voxel + start for group, start in zip(voxels, starts, strict=False) for voxel in group]
        )
        seen = np.zeros(starts[-1], np.int64)
        seen[wide] = 1  # a voxel whose pairs were all left out gets no number
        batch = replace(batch, voxel_id=torch.from_numpy((np.cumsum(seen) - 1)[wide]))
    return batch

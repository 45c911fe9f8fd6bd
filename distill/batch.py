"""Turns points into the voxels that the student sees, and frames into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int32, Int64, UInt64
from torch import Tensor

from clipsweep.projection import grid, kernels

Reduce = Literal["first", "mean", "max"]

_MODES: dict[Reduce, int] = {"first": 0, "mean": 1, "max": 2}


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One frame as the student learns from it: points, and what the teacher says of some of them.

    Attributes:
        frame: id of the frame.
        xyz: positions in the key sweep's LiDAR frame, augmented or not [m].
        intensity: return strength, 0..1.
        age_s: key sweep's time minus the point's [s].
        pair_point: row of the point of each target.
        pair_label: its class.
        pair_pixel: row of its pixel among the frame's pixel features, where there are any.
        pair_cube: its cube of space-time in the frame, where objectives ask for cubes.
    """

    frame: str
    xyz: Float32[np.ndarray, "n 3"]
    intensity: Float32[np.ndarray, " n"]
    age_s: Float32[np.ndarray, " n"]
    pair_point: Int64[np.ndarray, " m"]
    pair_label: Int64[np.ndarray, " m"]
    pair_pixel: Int64[np.ndarray, " m"] | None = None
    pair_cube: Int64[np.ndarray, " m"] | None = None

    @classmethod
    def of_points(cls, frame: str, xyz: np.ndarray, intensity: np.ndarray, age_s: np.ndarray) -> Sample:
        """A frame without targets, to predict."""
        nothing = np.empty(0, np.int64)
        return cls(frame, xyz, intensity, age_s, nothing, nothing)


@dataclass(frozen=True, eq=False, slots=True)
class Voxels:
    """One frame cut into voxels; pairs count the points that are left.

    Attributes:
        frame: id of the frame.
        coords: coordinates of each voxel, in lexicographic order.
        feats: features of each voxel.
        inverse: voxel of each point that is left.
        corners: the eight voxels around each point and their weights, where trilinear features are asked for.
        pair_point: row of the point of each target, among the points that are left.
        pair_label: its class.
        cut: number of voxels left out to keep the limit.
        pair_pixel: row of its pixel among the frame's pixel features, where there are any.
        pair_cube: its cube of space-time in the frame, where objectives ask for cubes.
    """

    frame: str
    coords: Int32[np.ndarray, "v 3"]
    feats: Float32[np.ndarray, "v c"]
    inverse: Int32[np.ndarray, " n"]
    corners: tuple[Int32[np.ndarray, "n 8"], Float32[np.ndarray, "n 8"]] | None
    pair_point: Int64[np.ndarray, " m"]
    pair_label: Int64[np.ndarray, " m"]
    cut: int
    pair_pixel: Int64[np.ndarray, " m"] | None = None
    pair_cube: Int64[np.ndarray, " m"] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Sweeps of one frame, each with its own augmentation, that share the frame's pixels and cubes.

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
        cut: number of voxels left out to keep the limit.
        corner: the eight voxels around each point, where trilinear features are asked for.
        corner_weight: their weights, which sum to 1.
        pixel: unit features of pixels, where there are any.
        pair_pixel: row of each target's pixel in ``pixel``.
        pair_cube: each target's cube of space-time, 0..cubes-1, where objectives ask for cubes.
        left_out: reasons why older sweeps are missing.
    """

    coords: Int32[Tensor, "v 4"]
    feats: Float32[Tensor, "v c"]
    inverse: Int64[Tensor, " n"]
    pair_point: Int64[Tensor, " m"]
    pair_label: Int64[Tensor, " m"]
    frames: tuple[str, ...]
    cut: int
    corner: Int64[Tensor, "n 8"] | None = None
    corner_weight: Float32[Tensor, "n 8"] | None = None
    pixel: Float16[Tensor, "q d"] | None = None
    pair_pixel: Int64[Tensor, " m"] | None = None
    pair_cube: Int64[Tensor, " m"] | None = None
    left_out: tuple[str, ...] = ()

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        new: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **new)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device; copies from pinned memory do not wait."""
        wait = torch.device(device).type == "cpu"
        return self._each(lambda value: value.to(device, non_blocking=not wait))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._each(Tensor.pin_memory)


def _offset(xyz: np.ndarray, sample: Sample, voxel_m: float, height_m: float) -> np.ndarray:
    cells = xyz / voxel_m
    cells -= np.floor(cells)
    cells -= 0.5
    return cells


FEATURES: dict[str, Callable[[np.ndarray, Sample, float, float], np.ndarray]] = {
    "intensity": lambda xyz, sample, voxel_m, height_m: sample.intensity[:, None],
    "height": lambda xyz, sample, voxel_m, height_m: xyz[:, 2:] + height_m,
    "range": lambda xyz, sample, voxel_m, height_m: np.sqrt(np.einsum("ij,ij->i", xyz, xyz))[:, None],
    "age": lambda xyz, sample, voxel_m, height_m: sample.age_s[:, None],
    "offset": _offset,
}
"""Features of a point: intensity 0..1, height above ground [m], range [m], age [s], place in its voxel -0.5..0.5."""


def channels(features: Sequence[str]) -> int:
    """Number of columns that the named features fill.

    Raises:
        ValueError: a name is not one of ``FEATURES``, or there is none.
    """
    unknown = [name for name in features if name not in FEATURES]
    if unknown or not features:
        raise ValueError(f"model.features={list(features)}: choose from {', '.join(FEATURES)}")
    return sum(3 if name == "offset" else 1 for name in features)


def _nearest(
    coords: Int32[np.ndarray, "v 3"], limit: int, generator: np.random.Generator | None
) -> Int64[np.ndarray, " k"]:
    """The voxels nearest to a voxel drawn at random, or to the sensor; whole neighbourhoods, unlike a random choice."""
    centre = coords[generator.integers(len(coords))] if generator is not None else np.zeros(3, np.int32)
    distance = ((coords - centre).astype(np.float32) ** 2).sum(axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:limit])


def _sorted_cells(keys: UInt64[np.ndarray, " n"]) -> tuple[UInt64[np.ndarray, " v"], Int32[np.ndarray, " n"]]:
    """Distinct keys in order, so that cells that touch stand near each other in memory, and each key's place there."""
    index, inverse = grid.index_cells(keys)
    order = np.argsort(index.keys)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return index.keys[order], rank[inverse]


def _cut(
    sample: Sample, keys: UInt64[np.ndarray, " n"], limit: int, generator: np.random.Generator | None
) -> tuple[Sample, UInt64[np.ndarray, " v"], Int32[np.ndarray, " left"], int]:
    """Finds the voxels and, when they are too many, leaves some out with their points and targets."""
    cells, inverse = _sorted_cells(keys)
    count = len(cells)
    if not limit or count <= limit:
        return sample, cells, inverse, 0
    left = np.zeros(count, bool)
    left[_nearest(grid.key_coords(cells)[:, 1:], limit, generator)] = True
    points = left[inverse]
    targets = points[sample.pair_point]
    row = np.cumsum(points) - 1
    sample = Sample(
        sample.frame,
        sample.xyz[points],
        sample.intensity[points],
        sample.age_s[points],
        row[sample.pair_point[targets]],
        sample.pair_label[targets],
        None if sample.pair_pixel is None else sample.pair_pixel[targets],
        None if sample.pair_cube is None else sample.pair_cube[targets],
    )
    cells, inverse = _sorted_cells(keys[points])
    return sample, cells, inverse, count - len(cells)


def voxelise(
    sample: Sample,
    *,
    voxel_m: float,
    features: Sequence[str],
    reduce: Reduce,
    sensor_height_m: float,
    max_voxels: int = 0,
    trilinear: bool = False,
    generator: np.random.Generator | None = None,
) -> Voxels:
    """Cuts a frame into voxels and gathers the features of each.

    Args:
        sample: the frame.
        voxel_m: edge of a voxel [m].
        features: names from ``FEATURES``.
        reduce: what a voxel keeps of its points' features.
        sensor_height_m: height of the LiDAR above the ground [m].
        max_voxels: limit while training, 0 = none; what is beyond is left out with its points and targets, so leave it
            0 to predict.
        trilinear: also find the eight voxels around each point.
        generator: draws the place around which voxels are kept; without one it is the sensor.

    Raises:
        ValueError: an unknown feature, or a point that is not finite or farther than 2^18 voxels.
    """
    width = channels(features)
    keys = grid.cell_keys(sample.xyz, voxel_m)
    sample, cells, inverse, cut = _cut(sample, keys, max_voxels, generator)
    xyz = sample.xyz.astype(np.float64)
    values = np.empty((len(xyz), width), np.float32)
    np.concatenate(
        [FEATURES[name](xyz, sample, voxel_m, sensor_height_m) for name in features],
        axis=1,
        out=values,
        casting="same_kind",
    )
    feats = np.empty((len(cells), width), np.float32)
    kernels.reduce_rows(values, inverse, _MODES[reduce], feats, np.zeros(len(cells), np.int32))
    around = None
    if trilinear:
        around = np.empty((len(xyz), 8), np.int32), np.empty((len(xyz), 8), np.float32)
        index, _ = grid.index_cells(cells)
        kernels.corners(sample.xyz, voxel_m, cells, index.table, *around)
    coords = np.ascontiguousarray(grid.key_coords(cells)[:, 1:])
    pairs = sample.pair_point, sample.pair_label
    return Voxels(sample.frame, coords, feats, inverse, around, *pairs, cut, sample.pair_pixel, sample.pair_cube)


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

    def join(parts: Sequence[np.ndarray], shift: Sequence[int] | np.ndarray | None = None) -> Tensor:
        if shift is None:
            return torch.from_numpy(np.concatenate(parts))
        return torch.from_numpy(
            np.concatenate([np.add(part, s, dtype=np.int64) for part, s in zip(parts, shift, strict=False)])
        )

    around = [frame.corners for frame in frames if frame.corners is not None]
    return Batch(
        torch.from_numpy(coords),
        join([frame.feats for frame in frames]),
        join([frame.inverse for frame in frames], voxels),
        join([frame.pair_point for frame in frames], points),
        join([frame.pair_label for frame in frames]),
        tuple(frame.frame for frame in frames),
        sum(frame.cut for frame in frames),
        join([cell for cell, _ in around], voxels) if around else None,
        join([weight for _, weight in around]) if around else None,
    )


def collate_groups(groups: Sequence[Group]) -> Batch:
    """Puts the sweeps of frames together as ``collate`` does, numbering pixels and cubes through.

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
            batch, pixel=torch.from_numpy(np.concatenate(pixels)), pair_pixel=torch.from_numpy(np.concatenate(rows))
        )
    cubes = [[s.pair_cube for s in group.sweeps if s.pair_cube is not None] for group in groups]
    if any(cubes):
        sizes = [max((int(cube.max(initial=-1)) + 1 for cube in group), default=0) for group in cubes]
        starts = np.cumsum([0, *sizes])
        wide = np.concatenate([cube + start for group, start in zip(cubes, starts, strict=False) for cube in group])
        seen = np.zeros(starts[-1], np.int64)
        seen[wide] = 1  # a cube whose pairs were all cut gets no number
        batch = replace(batch, pair_cube=torch.from_numpy((np.cumsum(seen) - 1)[wide]))
    return batch

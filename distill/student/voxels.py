"""Voxelizes point clouds into the input of a sparse 3D network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt64

from clipsweep.projection import grid, kernels

Reduce = Literal["first", "mean", "max"]

_MODES: dict[Reduce, int] = {"first": 0, "mean": 1, "max": 2}


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Training sample: points of a frame, and targets of some of them.

    Attributes:
        frame: id of the frame.
        xyz: positions in the key sweep's LiDAR frame, augmented or not [m].
        intensity: return strength, 0..1.
        age_s: key sweep's time minus the point's [s].
        pair_point: row of the point of each target.
        pair_label: its class.
        pair_pixel: row of its pixel among the frame's pixel features, where there are any.
        voxel_id: each target's voxel over all merged sweeps, where an objective needs it.
        origin: where the LiDAR stood when it saw each point [m]; None is the origin of ``xyz``.
    """

    frame: str
    xyz: Float32[np.ndarray, "n 3"]
    intensity: Float32[np.ndarray, " n"]
    age_s: Float32[np.ndarray, " n"]
    pair_point: Int64[np.ndarray, " m"]
    pair_label: Int64[np.ndarray, " m"]
    pair_pixel: Int64[np.ndarray, " m"] | None = None
    voxel_id: Int64[np.ndarray, " m"] | None = None
    origin: Float32[np.ndarray, "n 3"] | None = None

    @classmethod
    def of_points(
        cls,
        frame: str,
        xyz: np.ndarray,
        intensity: np.ndarray,
        age_s: np.ndarray,
        origin: np.ndarray | None = None,
    ) -> Sample:
        """Inference sample: the points of a frame without targets."""
        nothing = np.empty(0, np.int64)
        return cls(frame, xyz, intensity, age_s, nothing, nothing, origin=origin)


@dataclass(frozen=True, eq=False, slots=True)
class Voxels:
    """Voxelized point cloud of one frame; pairs count the points that are left.

    Attributes:
        frame: id of the frame.
        coords: coordinates of each voxel, in lexicographic order.
        feats: features of each voxel.
        inverse: voxel of each point that is left.
        corners: the eight voxels around each point and their weights, where trilinear features are
            asked for.
        pair_point: row of the point of each target, among the points that are left.
        pair_label: its class.
        truncated: number of voxels left out to keep the limit.
        pair_pixel: row of its pixel among the frame's pixel features, where there are any.
        voxel_id: each target's voxel over all merged sweeps, where an objective needs it.
    """

    frame: str
    coords: Int32[np.ndarray, "v 3"]
    feats: Float32[np.ndarray, "v c"]
    inverse: Int32[np.ndarray, " n"]
    corners: tuple[Int32[np.ndarray, "n 8"], Float32[np.ndarray, "n 8"]] | None
    pair_point: Int64[np.ndarray, " m"]
    pair_label: Int64[np.ndarray, " m"]
    truncated: int
    pair_pixel: Int64[np.ndarray, " m"] | None = None
    voxel_id: Int64[np.ndarray, " m"] | None = None


def _offset(xyz: np.ndarray, sample: Sample, voxel_m: float, height_m: float) -> np.ndarray:
    cells = xyz / voxel_m
    cells -= np.floor(cells)
    cells -= 0.5
    return cells


def _range(xyz: np.ndarray, sample: Sample, voxel_m: float, height_m: float) -> np.ndarray:
    ray = xyz if sample.origin is None else xyz - sample.origin
    return np.sqrt(np.einsum("ij,ij->i", ray, ray))[:, None]


FEATURES: dict[str, Callable[[np.ndarray, Sample, float, float], np.ndarray]] = {
    "intensity": lambda xyz, sample, voxel_m, height_m: sample.intensity[:, None],
    "height": lambda xyz, sample, voxel_m, height_m: xyz[:, 2:] + height_m,
    "range": _range,
    "age": lambda xyz, sample, voxel_m, height_m: sample.age_s[:, None],
    "offset": _offset,
}
"""Input features of a point.

Intensity 0..1, height above ground [m], range from the LiDAR at the time of its sweep [m], age [s],
place in its voxel -0.5..0.5.
"""


def channels(features: Sequence[str]) -> int:
    """Number of input channels of the named point features.

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
    """Crops a point cloud to the voxels nearest to one drawn at random, or to the sensor.

    Whole neighbourhoods, unlike a random choice.
    """
    centre = (
        coords[generator.integers(len(coords))] if generator is not None else np.zeros(3, np.int32)
    )
    distance = ((coords - centre).astype(np.float32) ** 2).sum(axis=1)
    return np.sort(np.argsort(distance, kind="stable")[:limit])


def _sorted_cells(
    keys: UInt64[np.ndarray, " n"],
) -> tuple[UInt64[np.ndarray, " v"], Int32[np.ndarray, " n"]]:
    """Distinct voxels sorted by key, and each point's voxel.

    In this order voxels that touch are near each other in memory.
    """
    index, inverse = grid.index_cells(keys)
    order = np.argsort(index.keys)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return index.keys[order], rank[inverse]


def _limit_voxels(
    sample: Sample,
    keys: UInt64[np.ndarray, " n"],
    limit: int,
    generator: np.random.Generator | None,
) -> tuple[Sample, UInt64[np.ndarray, " v"], Int32[np.ndarray, " left"], int]:
    """Finds the occupied voxels; crops points and targets where there are too many voxels."""
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
        None if sample.voxel_id is None else sample.voxel_id[targets],
        None if sample.origin is None else sample.origin[points],
    )
    cells, inverse = _sorted_cells(keys[points])
    return sample, cells, inverse, count - len(cells)


def voxelize(
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
    """Voxelizes a point cloud and reduces the features of its points to each voxel.

    Args:
        sample: the frame.
        voxel_m: edge of a voxel [m].
        features: names from ``FEATURES``.
        reduce: what a voxel keeps of its points' features.
        sensor_height_m: height of the LiDAR above the ground [m].
        max_voxels: limit while training, 0 = none; what is beyond is left out with its points and
            targets, so leave it 0 to predict.
        trilinear: also find the eight voxels around each point.
        generator: draws the place around which voxels are kept; without one it is the sensor.

    Raises:
        ValueError: an unknown feature, or a point that is not finite or farther than 2^18 voxels.
    """
    width = channels(features)
    keys = grid.cell_keys(sample.xyz, voxel_m)
    sample, cells, inverse, truncated = _limit_voxels(sample, keys, max_voxels, generator)
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
    return Voxels(
        sample.frame,
        coords,
        feats,
        inverse,
        around,
        *pairs,
        truncated,
        sample.pair_pixel,
        sample.voxel_id,
    )

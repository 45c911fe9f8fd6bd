"""Ground segmentation: a height map of the ground, and the height of what stands on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt64

from clipsweep.projection import ground_kernels as kernels
from clipsweep.projection.pose import Pose

_REACH_M = 100.0  # the map ends this far from the track of the sensor; points beyond have no height
_CELL_M = 0.5
_QUANTILE = 0.1  # of the heights of the points in a cell
_SLOPE = 0.15  # steepest ground, as rise per run; roofs and bonnets end more steeply
_STEP_M = 0.2  # a kerb
_NEAR_CELLS = 2  # cells around one that predict its height
_TRACK_M = 8.0  # around the sensor, where the road is looked for
_BAND_M = 0.3  # of heights, which holds most of the road's cells there
_DEEPEST_M = -0.5  # points lower than this show that the map is wrong there
_SURE_M = 1.0  # from ground that was seen
_COLUMN_M = 0.3  # side of a column
_LIFT_M = 0.25  # height of one of its 64 steps
_GAP_M = 1.0  # what is missing between two beams does not end a column


@dataclass(frozen=True, eq=False, slots=True)
class Heights:
    """Heights of points above the ground, and of the objects that they are part of.

    Attributes:
        height: above ground [m]; NaN off the map and where a point is so far under it that the
            ground cannot be known.
        top: of what the point is part of, above ground [m]; NaN off the map.
        known: whether ground was seen close by, so that heights can be relied on.
    """

    height: Float32[np.ndarray, " n"]
    top: Float32[np.ndarray, " n"]
    known: Bool[np.ndarray, " n"]


@dataclass(frozen=True, eq=False, slots=True)
class GroundMap:
    """Ground height map of a stretch of road, and what stands on it; the z axis points up.

    Attributes:
        corner: least x and y of the map [m].
        ground: height of the ground at the cells' centres [m]; NaN where nothing is known.
        gap: distance of each cell from ground that was seen [m].
        columns: occupied steps of 0.25 m above ground, as bits, for each square of 0.3 m.
        shape: rows and columns of those squares.
    """

    corner: Float64[np.ndarray, "2"]
    ground: Float32[np.ndarray, "h w"]
    gap: Float32[np.ndarray, "h w"]
    columns: UInt64[np.ndarray, " squares"]
    shape: tuple[int, int]

    def heights(self, xyz: Float32[np.ndarray, "n 3"], map_from_xyz: Pose) -> Heights:
        """Heights above ground of points, and of the tops of the objects they belong to.

        ```
            wall |#           car     o
                 |#        ___       ( )  tree, more than 1 m over the roof
                 |#       |###|_
            -----+#-------+#####+-------- ground
        top:      8 m      1.5 m
        ```
        """
        height, known = self._above_ground(xyz, map_from_xyz)
        top = np.empty(len(xyz), np.float32)
        kernels.tops(
            xyz, height, map_from_xyz.rotation, map_from_xyz.translation, self.corner, _COLUMN_M,
            self.shape, _LIFT_M, round(_GAP_M / _LIFT_M), self.columns, top,
        )  # fmt: skip
        return Heights(height, top, known)

    def _above_ground(
        self, xyz: Float32[np.ndarray, "n 3"], pose: Pose
    ) -> tuple[Float32[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
        height = np.empty(len(xyz), np.float32)
        known = np.empty(len(xyz), np.bool_)
        kernels.heights(
            xyz, pose.rotation, pose.translation, self.corner, _CELL_M, self.ground, _DEEPEST_M,
            self.gap, _SURE_M, height, known,
        )  # fmt: skip
        return height, known


def map_ground(
    clouds: Sequence[Float32[np.ndarray, "_ 3"]], map_from_lidar: Sequence[Pose]
) -> GroundMap:
    """Estimates the ground height map of a stretch of road, and what stands on it, from sweeps.

    The road under the sensor is found first: of the cells' lowest points near it, the height below
    the sensor that most of them share. From there the ground is followed outwards, so that neither
    cars and walls nor returns that seem to come from below the road (mirror images, multipath) can
    be taken for it. Where a cell is seen as low by some sweeps and higher by others, the lower
    envelope over slopes of 15 % holds.

    Args:
        clouds: points of each sweep in its LiDAR's frame [m].
        map_from_lidar: pose of each sweep in the map's frame, whose z axis must point up within a
            few degrees.
    """
    where = np.array([pose.translation[:2] for pose in map_from_lidar])
    corner = where.min(axis=0) - _REACH_M
    far = where.max(axis=0) + _REACH_M
    shape = (
        int(np.ceil((far[0] - corner[0]) / _CELL_M)),
        int(np.ceil((far[1] - corner[1]) / _CELL_M)),
    )
    low = _lowest(clouds, map_from_lidar, corner, shape)
    ground = np.empty(shape, np.float32)
    gap = np.empty(shape, np.float32)
    seed = _track(low, map_from_lidar, corner)
    kernels.grow_ground(low, seed, _SLOPE, _STEP_M, _CELL_M, _NEAR_CELLS, ground, gap)
    seen = np.where(gap == 0, ground, np.float32(np.inf))
    kernels.limit_slope(seen, _SLOPE * _CELL_M)
    ground = np.minimum(seen, ground)

    size = (far - corner) / _COLUMN_M
    squares = (int(np.ceil(size[0])), int(np.ceil(size[1])))
    columns = np.zeros(squares[0] * squares[1], np.uint64)
    made = GroundMap(corner, ground, gap, columns, squares)
    for xyz, pose in zip(clouds, map_from_lidar, strict=True):
        height, _ = made._above_ground(xyz, pose)
        kernels.stack(
            xyz,
            height,
            pose.rotation,
            pose.translation,
            corner,
            _COLUMN_M,
            squares,
            _LIFT_M,
            columns,
        )
    return made


def _lowest(
    clouds: Sequence[Float32[np.ndarray, "_ 3"]],
    poses: Sequence[Pose],
    corner: Float64[np.ndarray, "2"],
    shape: tuple[int, int],
) -> Float32[np.ndarray, "h w"]:
    """Lowest points of each cell: a low quantile of the heights, inf where there are no points."""
    room = sum(map(len, clouds))
    cell = np.empty(room, np.int32)
    z = np.empty(room, np.float32)
    count = 0
    for xyz, pose in zip(clouds, poses, strict=True):
        count = kernels.gather(
            xyz, pose.rotation, pose.translation, corner, _CELL_M, shape, 1, cell, z, count
        )
    low = np.empty(shape[0] * shape[1], np.float32)
    kernels.low_quantile(cell[:count], z[:count], _QUANTILE, low)
    return low.reshape(shape)


def _track(
    low: Float32[np.ndarray, "h w"], poses: Sequence[Pose], corner: Float64[np.ndarray, "2"]
) -> Float32[np.ndarray, "h w"]:
    """Ground seeds: height of the road where the sensor drove, NaN in all other cells."""
    seed = np.full(low.shape, np.nan, np.float32)
    reach = round(_TRACK_M / _CELL_M)
    cells = [((pose.translation[:2] - corner) / _CELL_M).astype(int) for pose in poses]
    below: list[np.ndarray] = []
    for (row, column), pose in zip(cells, poses, strict=True):
        near = low[row - reach : row + reach + 1, column - reach : column + reach + 1]
        below.append(near[np.isfinite(near)] - pose.translation[2])
    heights = np.sort(np.concatenate(below))
    if not len(heights):
        return seed
    within = np.searchsorted(heights, heights + _BAND_M, side="right") - np.arange(len(heights))
    first = int(within.argmax())
    sensor_m = -float(np.median(heights[first : first + within[first]]))
    for (row, column), pose in zip(cells, poses, strict=True):
        seed[row, column] = pose.translation[2] - sensor_m
    return seed

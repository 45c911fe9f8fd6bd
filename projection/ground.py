"""Finds the ground under a drive, and how high stands what stands on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, UInt64

from projection import ground_kernels as kernels
from projection.pose import Pose

_REACH_M = 100.0  # the map ends this far from the nearest sensor position's box; points beyond have no height
_CELL_M = 0.5
_QUANTILE = 0.1  # of the points in a cell; some returns lie under the ground (mirrored, multipath)
_PIT_RANK, _PIT_CELLS = 4, 2  # a cell is no lower than the fifth lowest of the 5 x 5 around it
_DEEPEST_M = -0.5  # points lower than this show that the map is wrong there
_SLOPE = 0.15  # steepest ground, as rise per run; roofs and bonnets end more steeply
_MOST_POINTS = 8_000_000  # that the ground is taken from; more are thinned evenly
_COLUMN_M, _LIFT_M, _GAP_M = 0.3, 0.25, 1.0  # side and step of a column of 16 m; gaps between two beams do not end it

SweepPoints = tuple[Float32[np.ndarray, "n 3"], Pose]
"""Points in their LiDAR's frame, and ``site_from_lidar``."""


@dataclass(frozen=True, eq=False, slots=True)
class Site:
    """The ground of one drive and what stands on it, in a frame of its own whose z axis points up.

    Attributes:
        site_from_global: into that frame.
        corner: least x and y of the map [m].
        ground: height of the ground at the cells' centres [m].
        columns: occupied steps of 0.25 m above ground, as bits, for each square of 0.3 m.
        shape: rows and columns of those squares.
    """

    site_from_global: Pose
    corner: Float64[np.ndarray, "2"]
    ground: Float32[np.ndarray, "h w"]
    columns: UInt64[np.ndarray, " squares"]
    shape: tuple[int, int]

    def height(self, xyz: Float32[np.ndarray, "n 3"], site_from_xyz: Pose) -> Float32[np.ndarray, " n"]:
        """Height above ground [m]; NaN off the map, and so far under it that the ground cannot be known there."""
        height = np.empty(len(xyz), np.float32)
        pose = site_from_xyz
        kernels.heights(xyz, pose.rotation, pose.translation, self.corner, _CELL_M, self.ground, _DEEPEST_M, height)
        return height

    def top(
        self, xyz: Float32[np.ndarray, "n 3"], height: Float32[np.ndarray, " n"], site_from_xyz: Pose
    ) -> Float32[np.ndarray, " n"]:
        """Height above ground of the top of what each point is part of [m], NaN off the map.

        ```
            wall |#           car     o
                 |#        ___       ( )  tree, more than 1 m over the roof
                 |#       |###|_
            -----+#-------+#####+-------- ground
        top:      8 m      1.5 m
        ```
        """
        top, pose = np.empty(len(xyz), np.float32), site_from_xyz
        gap = round(_GAP_M / _LIFT_M)
        kernels.tops(
            xyz, height, pose.rotation, pose.translation, self.corner, _COLUMN_M, self.shape, _LIFT_M, gap,
            self.columns, top,
        )  # fmt: skip
        return top


def survey(
    site_from_global: Pose, positions: Sequence[Pose], points: Callable[[], Iterator[SweepPoints]], total: int
) -> Site:
    """Maps the ground and what stands on it from all sweeps of a drive.

    The ground is the highest surface under (nearly) all points that is nowhere steeper than 15 %: a low quantile in
    each cell, single pits filled, then the lower envelope by a two-pass distance transform. It passes under cars,
    walls and trees, and is not pulled down by the few returns that seem to come from below the road.

    Args:
        site_from_global: frame of the map; its z axis must point up within a few degrees.
        positions: ``site_from_lidar`` of all sweeps.
        points: starts one pass over the sweeps; called twice, so that none has to stay in memory.
        total: number of points in all sweeps, an upper bound.
    """
    where = np.array([pose.translation[:2] for pose in positions])
    corner, far = where.min(axis=0) - _REACH_M, where.max(axis=0) + _REACH_M
    rows, columns = (int(n) for n in np.ceil((far - corner) / _CELL_M))
    step = max(1, -(-total // _MOST_POINTS))
    room = total // step + len(positions)
    cell, z, count = np.empty(room, np.int32), np.empty(room, np.float32), 0
    for xyz, pose in points():
        count = kernels.gather(
            xyz, pose.rotation, pose.translation, corner, _CELL_M, (rows, columns), step, cell, z, count
        )
    low = np.empty(rows * columns, np.float32)
    kernels.low_quantile(cell[:count], z[:count], _QUANTILE, low)
    ground = np.empty((rows, columns), np.float32)
    kernels.fill_pits(low.reshape(rows, columns), _PIT_RANK, _PIT_CELLS, ground)
    kernels.limit_slope(ground, _SLOPE * _CELL_M)

    shape = (int(np.ceil((far[0] - corner[0]) / _COLUMN_M)), int(np.ceil((far[1] - corner[1]) / _COLUMN_M)))
    site = Site(site_from_global, corner, ground, np.zeros(shape[0] * shape[1], np.uint64), shape)
    for xyz, pose in points():
        kernels.stack(
            xyz, site.height(xyz, pose), pose.rotation, pose.translation, corner, _COLUMN_M, shape, _LIFT_M,
            site.columns,
        )  # fmt: skip
    return site

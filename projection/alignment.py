"""Ego pose correction: aligns the height, pitch and roll of key frames by their shared ground.

nuScenes writes every ego pose with z = 0, while streets climb. Two key frames a second apart then
show the same road at two heights, and votes cast in one grid for both end up in wrong cells.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.linalg import solveh_banded
from threadpoolctl import ThreadpoolController

from clipsweep.projection import alignment_kernels as kernels
from clipsweep.projection.pose import Pose

_CELL_M = 1.0
_REACH_M = 40.0  # rings are too far apart beyond
_FLAT_M = 0.2  # height range of a flat cell's points
_LEAST_POINTS = 3
_LEAST_CELLS = 40  # that two frames must share to be compared
_ROUNDS = 8  # of reweighting
_NOISE_M = 0.03  # spread of the height of a flat cell
_AGREEING_M = 0.01  # where no two key frames differ more, all are left as they are
_APART_M = 0.15  # frames that still differ more than this do not fit together
_PRIOR_M = 30.0  # the correction of a height, a priori
_PRIOR_RAD = 0.02  # and of pitch and roll


@dataclass(frozen=True, eq=False, slots=True)
class FlatCells:
    """Flat ground cells of one key frame.

    Attributes:
        cell: packed column and row in the global frame, ascending.
        centre: mean of the points in it, in the global frame [m].
    """

    cell: Int64[np.ndarray, " m"]
    centre: Float64[np.ndarray, "m 3"]


@dataclass(frozen=True, eq=False, slots=True)
class Alignment:
    """Vertical pose corrections (height, pitch, roll) of the key frames of a scene.

    Attributes:
        corrections: for each key frame the pose to put before its ``global_from_lidar``; none of
            them moves anything where the frames agree already, or do not fit.
        before_m: difference in height of the ground that two key frames share [m], the median over
            the ground, the mean over all pairs of key frames that were compared.
        after_m: the same with the corrections.
        largest_m: largest correction of a height between neighbouring key frames [m].
        fits: for each key frame, whether it agrees on the ground with the others well enough to be
            fused with them.
    """

    corrections: tuple[Pose, ...]
    before_m: float
    after_m: float
    largest_m: float
    fits: tuple[bool, ...]

    @property
    def corrected(self) -> bool:
        """Whether any key frame's pose was changed."""
        return self.after_m != self.before_m


def unaligned(frames: int) -> Alignment:
    """Identity corrections, for key frames that were not compared."""
    return Alignment(tuple(Pose.identity() for _ in range(frames)), 0.0, 0.0, 0.0, (True,) * frames)


class FlatCellFinder:
    """Finds the flat ground cells of sweeps; owns the scratch memory for that."""

    def __init__(self) -> None:
        self._width = 2 * round(_REACH_M / _CELL_M)
        cells = self._width**2
        self._low = np.full(cells, np.inf, np.float32)
        self._high = np.full(cells, -np.inf, np.float32)
        self._total = np.zeros((cells, 3))
        self._count = np.zeros(cells, np.int32)

    def find(self, xyz: Float32[np.ndarray, "n 3"], global_from_lidar: Pose) -> FlatCells:
        """Flat ground cells within 40 m of the sensor."""
        centre = np.floor(global_from_lidar.translation[:2] / _CELL_M).astype(np.int64)
        cell = np.empty(len(self._count), np.int64)
        mean = np.empty((len(cell), 3))
        found = kernels.flat_cells(
            xyz, global_from_lidar.rotation, global_from_lidar.translation,
            centre - self._width // 2, _CELL_M, self._width, _FLAT_M, _LEAST_POINTS,
            self._low, self._high, self._total, self._count, cell, mean,
        )  # fmt: skip
        return FlatCells(cell[:found].copy(), mean[:found].copy())


@dataclass(frozen=True, eq=False, slots=True)
class _Match:
    """Relative ground height of two key frames over the cells that they share.

    Attributes:
        first, second: rows of the frames.
        xy: places of the shared cells, from the first frame's sensor [m].
        dz: height of the second frame's ground above the first's there [m].
        plane: offset and slopes of the plane that fits ``dz``.
        information: inverse covariance of ``plane``.
    """

    first: int
    second: int
    xy: Float64[np.ndarray, "m 2"]
    dz: Float64[np.ndarray, " m"]
    plane: Float64[np.ndarray, "3"]
    information: Float64[np.ndarray, "3 3"]


def _fit_plane(
    xy: Float64[np.ndarray, "m 2"], dz: Float64[np.ndarray, " m"]
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3 3"]]:
    """Robust plane fit through the ground height differences of two key frames, with information.

    Iteratively reweighted least squares with Geman-McClure weights, robust to cells that changed.
    """
    design = np.column_stack([np.ones(len(xy)), xy])
    prior = np.diag([1 / _PRIOR_M**2, 1 / _PRIOR_RAD**2, 1 / _PRIOR_RAD**2]) * _NOISE_M**2
    plane = np.array([np.median(dz), 0.0, 0.0])
    normal = prior
    for _ in range(_ROUNDS):
        error = dz - design @ plane
        scale = max(2 * _NOISE_M, 1.5 * float(np.median(np.abs(error))))
        weight = 1 / (1 + (error / scale) ** 2) ** 2
        normal = (design * weight[:, None]).T @ design + prior
        plane = np.linalg.solve(normal, (design * weight[:, None]).T @ dz)
    noise_m = max(_NOISE_M, 1.48 * float(np.median(np.abs(dz - design @ plane))))
    return plane, normal / noise_m**2


def _match(
    first: int, second: int, cells: Sequence[FlatCells], poses: Sequence[Pose]
) -> _Match | None:
    one = cells[first]
    other = cells[second]
    rows = np.empty((min(len(one.cell), len(other.cell)), 2), np.int64)
    rows = rows[: kernels.common(one.cell, other.cell, rows)]
    if len(rows) < _LEAST_CELLS:
        return None
    xy = one.centre[rows[:, 0], :2] - poses[first].translation[:2]
    dz = other.centre[rows[:, 1], 2] - one.centre[rows[:, 0], 2]
    plane, information = _fit_plane(xy, dz)
    return _Match(first, second, xy, dz, plane, information)


def _pairs(
    times_us: Sequence[int], poses: Sequence[Pose], window_s: float
) -> Iterator[tuple[int, int]]:
    """Pairs of key frames 1, 2, 4, 8, ... apart that share votes and see the same ground."""
    for first in range(len(times_us)):
        step = 1
        while first + step < len(times_us):
            second = first + step
            apart = poses[second].translation[:2] - poses[first].translation[:2]
            late = times_us[second] - times_us[first] > window_s * 1e6
            if late or np.linalg.norm(apart) > 1.5 * _REACH_M:
                break
            yield first, second
            step *= 2


def align(
    cells: Sequence[FlatCells], poses: Sequence[Pose], times_us: Sequence[int], window_s: float
) -> Alignment:
    """Aligns a scene's key frames to one ground: height, pitch and roll (pose graph adjustment).

    The plane through the height differences of each pair of key frames is a measurement of their
    relative height, pitch and roll; all measurements are adjusted together by least squares, which
    is linear because the angles are small.

    Args:
        cells: flat cells of each key frame, in order of time.
        poses: ``global_from_lidar`` of each key sweep.
        times_us: time of each key sweep [us].
        window_s: frames farther apart in time are not compared [s].
    """
    pairs = _pairs(times_us, poses, window_s)
    matches = [m for m in (_match(i, j, cells, poses) for i, j in pairs) if m is not None]
    still = np.zeros((len(poses), 3))
    before = _differences(matches, still, poses)
    if not matches or before.max() < _AGREEING_M:
        return unaligned(len(poses))
    motion = _adjust_robustly(matches, poses)
    after = _differences(matches, motion, poses)
    fits = _fitting(matches, after, len(poses))
    used = [k for k, match in enumerate(matches) if fits[match.first] and fits[match.second]]
    if not used or after[used].mean() >= before[used].mean():
        motion = still
        after = before
        fits = _fitting(matches, before, len(poses))
    motion[~np.array(fits)] = 0.0  # nothing is known of these
    steps = np.abs(np.diff(motion[:, 0]))
    return Alignment(
        corrections=tuple(_correction(m, pose) for m, pose in zip(motion, poses, strict=True)),
        before_m=float(before.mean()),
        after_m=float(after.mean()),
        largest_m=float(steps.max(initial=0.0)),
        fits=fits,
    )


def _fitting(
    matches: Sequence[_Match], differences_m: Float64[np.ndarray, " m"], frames: int
) -> tuple[bool, ...]:
    """Inlier key frames, whose ground lies as high as that of most that they were compared with."""
    of_frame: list[list[float]] = [[] for _ in range(frames)]
    for match, difference in zip(matches, differences_m, strict=True):
        of_frame[match.first].append(difference)
        of_frame[match.second].append(difference)
    return tuple(not each or float(np.median(each)) <= _APART_M for each in of_frame)


def _adjust_robustly(
    matches: Sequence[_Match], poses: Sequence[Pose]
) -> Float64[np.ndarray, "n 3"]:
    """Robust pose graph adjustment: ``_adjust``, outlier pairs weighted down (Geman-McClure)."""
    weight = np.ones(len(matches))
    for _ in range(_ROUNDS):
        motion = _adjust(matches, weight, poses)
        left = _differences(matches, motion, poses)
        weight = 1 / (1 + (left / (2 * _NOISE_M)) ** 2) ** 2
    return motion


def _adjust(
    matches: Sequence[_Match], weight: Float64[np.ndarray, " m"], poses: Sequence[Pose]
) -> Float64[np.ndarray, "n 3"]:
    """Linear least-squares pose graph adjustment: height [m] and slopes by frame, at its sensor."""
    n = 3 * len(poses)
    band = 3 * max(m.second - m.first for m in matches) + 2
    upper = np.zeros((band + 1, n))
    right = np.zeros(n)
    prior = np.tile([1 / _PRIOR_M**2, 1 / _PRIOR_RAD**2, 1 / _PRIOR_RAD**2], len(poses))
    upper[band] = prior
    for match, share in zip(matches, weight, strict=True):
        # correction of the second minus that of the first, as a plane about the first: -plane
        apart = poses[match.first].translation[:2] - poses[match.second].translation[:2]
        to_first = np.eye(3)
        to_first[0, 1:] = apart
        rows = 3 * np.array([match.first] * 3 + [match.second] * 3) + [0, 1, 2, 0, 1, 2]
        design = np.concatenate([-np.eye(3), to_first], axis=1)
        normal = share * design.T @ match.information @ design
        for i, row in enumerate(rows):
            for j, column in enumerate(rows):
                if column >= row:
                    upper[band + row - column, column] += normal[i, j]
        right[rows] -= share * design.T @ match.information @ match.plane
    with _blas().limit(limits=1):
        return solveh_banded(upper, right).reshape(-1, 3)


@cache
def _blas() -> ThreadpoolController:
    """Thread pools of the BLAS libraries.

    On a system of a hundred unknowns two threads wait for each other: fusing a nuScenes key frame
    took 126 ms with two and 22 ms with one. One thread also gives the same bytes everywhere.
    """
    return ThreadpoolController().select(user_api="blas")


def _differences(
    matches: Sequence[_Match], motion: Float64[np.ndarray, "n 3"], poses: Sequence[Pose]
) -> Float64[np.ndarray, " m"]:
    """Median difference of the shared ground's height, for each pair of key frames [m]."""
    medians = np.zeros(len(matches))
    for k, match in enumerate(matches):
        apart = poses[match.first].translation[:2] - poses[match.second].translation[:2]
        first = motion[match.first, 0] + match.xy @ motion[match.first, 1:]
        second = motion[match.second, 0] + (match.xy + apart) @ motion[match.second, 1:]
        medians[k] = np.median(np.abs(match.dz + second - first))
    return medians


def _correction(motion: Float64[np.ndarray, "3"], pose: Pose) -> Pose:
    """Rigid transform of a pose correction: raises and tilts what a sensor at ``pose`` saw."""
    tilt = Pose.from_axis_angle(np.array([motion[2], -motion[1], 0.0]))
    at = pose.translation
    lifted = at + np.array([0.0, 0.0, motion[0]])
    return Pose(tilt.rotation, lifted - tilt.rotation @ at)

"""Checks of LiDAR sweeps: their frame, their height, intensities, empty returns, ego returns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float32, Int64

from clipsweep.pipeline.doctor.survey import Look, Survey

_NEAR_M = 4.0
_FAR_M = 20.0
_THIN_M = 0.4
_FEWEST = 100
_TRIALS = 300
_SAMPLE = 1500
_BEHIND_SHARE = 0.1
_HEIGHT_OFF_M = 0.5
_TILT_DEG = 12.0
_EMPTY_SHARE = 0.01
_EGO_SHARE = 0.02
_EGO_REACH_M = 4.0
_EGO_CELL_M = 0.25
_MOVED_M = 1.0


def lidar_upside_down(survey: Survey) -> str | None:
    """The ground lies above the sensor."""
    ground = _ground(survey)
    if ground is None or ground.tilt_deg > _TILT_DEG or ground.height_m <= 0.2:
        return None
    return (
        f"LiDAR frame upside down: the ground lies {ground.height_m:.1f} m above the sensor; z must"
        " point up"
    )


def lidar_height(survey: Survey) -> str | None:
    """The ground is not as far below the sensor as the settings say."""
    ground = _ground(survey)
    if ground is None or ground.tilt_deg > _TILT_DEG or ground.height_m > 0.2:
        return None
    if abs(ground.height_m + survey.sensor_height_m) <= _HEIGHT_OFF_M:
        return None
    return (
        f"sensor height: the ground lies {-ground.height_m:.1f} m below the LiDAR, "
        f"data.sensor_height_m is {survey.sensor_height_m:g}"
    )


def lidar_tilted(survey: Survey) -> str | None:
    """The ground is no horizontal plane in the LiDAR's frame."""
    ground = _ground(survey)
    if ground is None or ground.tilt_deg <= _TILT_DEG:
        return None
    return (
        f"LiDAR frame rotated: the ground is tilted by {ground.tilt_deg:.0f} degrees in it; z must "
        "be its normal"
    )


def intensity_above_scale(survey: Survey) -> str | None:
    """Intensities above the largest that the settings name."""
    most = max((float(look.rows[:, 3].max(initial=0)) for look in survey.looks), default=0.0)
    if most <= survey.intensity_scale * 1.001:
        return None
    return f"intensities reach {most:g}, above data.intensity_scale={survey.intensity_scale:g}"


def intensity_below_scale(survey: Survey) -> str | None:
    """Intensities that hardly use the scale, or not at all."""
    most = max((float(look.rows[:, 3].max(initial=0)) for look in survey.looks), default=1.0)
    if not survey.looks or most > 0.02 * survey.intensity_scale:
        return None
    return (
        f"intensities reach no more than {most:g} of data.intensity_scale="
        f"{survey.intensity_scale:g}"
    )


def intensity_negative(survey: Survey) -> str | None:
    """Negative intensities."""
    least = min((float(look.rows[:, 3].min(initial=0)) for look in survey.looks), default=0.0)
    return f"intensities are negative, down to {least:g}" if least < 0 else None


def empty_returns(survey: Survey) -> str | None:
    """Rays without a return that were kept as points at the origin."""
    shares = [float((np.abs(look.rows[:, :3]) < 1e-3).all(axis=1).mean()) for look in survey.looks]
    most = max(shares, default=0.0)
    if most <= _EMPTY_SHARE:
        return None
    return f"empty returns: {most:.0%} of a sweep's points lie at the origin; leave them out"


def ego_returns(survey: Survey) -> str | None:
    """Points that move with the car: returns of itself, outside of the ego box."""
    moving = [look for look in survey.looks if _way_m(survey, look) > _MOVED_M]
    if len(moving) < 3:
        return None
    cells = [_near_cells(look.rows[:, :3], survey) for look in moving]
    held = np.mean([np.isin(np.arange(_cells()), cell) for cell in cells], axis=0)
    own = np.flatnonzero(held >= 0.9)
    counts = [np.isin(cell, own).sum() for cell in cells]
    share = float(
        np.mean([count / len(look.rows) for count, look in zip(counts, moving, strict=True)])
    )
    if share <= _EGO_SHARE:
        return None
    side = round(2 * _EGO_REACH_M / _EGO_CELL_M)
    x, y, _ = np.unravel_index(own, (side, side, side))
    reach = max(np.abs((axis + 0.5) * _EGO_CELL_M - _EGO_REACH_M).max() for axis in (x, y))
    return (
        f"ego returns: {share:.0%} of the points move with the car; data.ego_box_m="
        f"{reach + 1.5 * _EGO_CELL_M:.1f} leaves them out"
    )


LIDAR_CHECKS = (
    lidar_upside_down,
    lidar_height,
    lidar_tilted,
    intensity_above_scale,
    intensity_below_scale,
    intensity_negative,
    empty_returns,
    ego_returns,
)


# --- ground and near cells ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ground:
    """Plane of the ground in a LiDAR's frame: its tilt [degrees], and its height [m]."""

    tilt_deg: float
    height_m: float


@lru_cache(maxsize=1)  # three checks ask for it
def _ground(survey: Survey) -> _Ground | None:
    """Ground in the LiDAR's frame, the median over frames."""
    found = [_ground_of(look) for look in survey.looks]
    planes = [ground for ground in found if ground]
    if not planes:
        return None
    tilt_deg = float(np.median([ground.tilt_deg for ground in planes]))
    return _Ground(tilt_deg, float(np.median([ground.height_m for ground in planes])))


def _ground_of(look: Look) -> _Ground | None:
    """Largest plane about the car with hardly any point behind it, by RANSAC.

    Points are thinned to one a cell first, so that area counts and not density. A plane that is
    nearly level is preferred: a street of walls has ground too.
    """
    xyz = _thinned(look.rows[:, :3].astype(np.float64))
    if len(xyz) < _FEWEST:
        return None
    rng = np.random.default_rng(0)
    xyz = xyz[rng.permutation(len(xyz))[:_SAMPLE]]
    corners = xyz[rng.integers(0, len(xyz), (_TRIALS, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    usable = lengths > 1.0
    normals = normals[usable] / lengths[usable, None]
    offsets = (normals * corners[usable, 0]).sum(axis=1)
    beyond = xyz @ normals.T - offsets
    behind = np.minimum((beyond > 0.5).mean(axis=0), (beyond < -0.5).mean(axis=0))
    support = np.where(behind < _BEHIND_SHARE, (np.abs(beyond) < 0.15).sum(axis=0), 0)
    tilt = np.degrees(np.arccos(np.clip(np.abs(normals[:, 2]), 0, 1)))
    level = np.where(tilt <= _TILT_DEG, support, 0)
    best = level.argmax() if 2 * level.max() >= support.max() else support.argmax()
    height_m = offsets[best] / normals[best, 2] if tilt[best] < 60 else 0.0
    return _Ground(float(tilt[best]), float(height_m))


def _thinned(xyz: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "m 3"]:
    """Points about the car, one of each cell."""
    away = np.linalg.norm(xyz, axis=1)
    near = xyz[(away > _NEAR_M) & (away < _FAR_M)]
    cells = np.floor(near / _THIN_M).astype(np.int64)
    return near[np.unique(cells, axis=0, return_index=True)[1]]


def _way_m(survey: Survey, look: Look) -> float:
    """How far the car moved from the first look at the scene [m]."""
    first = next(each for each in survey.looks if each.frame.scene == look.frame.scene)
    return float(
        np.linalg.norm(look.global_from_lidar.translation - first.global_from_lidar.translation)
    )


def _cells() -> int:
    return round(2 * _EGO_REACH_M / _EGO_CELL_M) ** 3


def _near_cells(xyz: Float32[np.ndarray, "n 3"], survey: Survey) -> Int64[np.ndarray, " m"]:
    """Cells of the points near the sensor and above the ground, outside of the ego box."""
    near = (np.abs(xyz) < _EGO_REACH_M).all(axis=1)
    outside = (np.abs(xyz[:, :2]) >= survey.ego_box_m).any(axis=1)
    raised = xyz[:, 2] > 0.5 - survey.sensor_height_m
    chosen = xyz[near & outside & raised]
    side = round(2 * _EGO_REACH_M / _EGO_CELL_M)
    index = ((chosen + _EGO_REACH_M) / _EGO_CELL_M).astype(np.int64)
    return np.clip(index, 0, side - 1) @ np.array([side * side, side, 1])

"""Checks of poses and clocks: jumps, standing poses, sweeps that do not lie on each other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

import numpy as np
from scipy.spatial import KDTree

from clipsweep.pipeline.doctor.survey import Look, Survey
from clipsweep.projection.frames import Sweep

_SLACK_M = 0.6
_ACCELERATION_M_S2 = 15.0
_CLOCK_S = 0.15
_MOVED_M = 1.5
_POINTS = 3000
_AROUND_M = 25.0


def poses_jump(survey: Survey) -> str | None:
    """A sweep's position is far from the line between those before and after it."""
    worst = 0.0
    when = 0
    for sweeps in _drives(survey):
        for before, here, after in zip(sweeps, sweeps[1:], sweeps[2:], strict=False):
            span_s = (after.time_us - before.time_us) * 1e-6
            off_m = _off_line_m(before, here, after)
            excess = off_m - _SLACK_M - _ACCELERATION_M_S2 * span_s**2 / 8
            if excess > 0 and off_m > worst:
                worst = off_m
                when = here.time_us
    if not worst:
        return None
    return f"poses jump: by {worst:.1f} m at {when} us, against the poses before and after"


def poses_stand_still(survey: Survey) -> str | None:
    """All poses are the same."""
    for sweeps in _drives(survey):
        matrices = {sweep.global_from_lidar.matrix().tobytes() for sweep in sweeps}
        if len(sweeps) > 2 and len(matrices) == 1:
            return f"poses never change: {len(sweeps)} sweeps have the same one"
    return None


def sweeps_do_not_match(survey: Survey) -> str | None:
    """By the poses, a sweep lies worse on an earlier one than without any."""
    worse = 0
    moved = 0
    for look in survey.looks:
        distances = _neighbours_m(look)
        if distances is not None:
            moved += 1
            worse += distances[0] > distances[1]
    if moved < 2 or worse <= 0.6 * moved:
        return None
    return (
        f"sweeps do not lie on each other: in {worse} of {moved} frames the poses bring them "
        "further apart; poses or the LiDAR's extrinsics are rotated, inverted or late"
    )


def clocks_apart(survey: Survey) -> str | None:
    """Images and sweeps of a frame are not of the same time."""
    gaps: dict[str, list[float]] = {}
    for look in survey.looks:
        for camera in look.frame.cameras:
            gap_s = (camera.time_us - look.frame.time_us) * 1e-6
            gaps.setdefault(camera.name, []).append(gap_s)
    middle = {name: float(np.median(values)) for name, values in gaps.items()}
    apart = {name: gap_s for name, gap_s in middle.items() if abs(gap_s) > _CLOCK_S}
    if not apart:
        return None
    name = max(apart, key=lambda each: abs(apart[each]))
    hint = ""
    if round(abs(apart[name])) in (18, 19, 37):
        hint = " (GPS, TAI and UTC differ by 18, 19 and 37 s)"
    return f"clocks apart: {name} is {apart[name]:+.2f} s from the LiDAR{hint}"


POSE_CHECKS = (poses_jump, poses_stand_still, sweeps_do_not_match, clocks_apart)


def _drives(survey: Survey) -> Iterator[list[Sweep]]:
    """All sweeps of each scene that the survey knows, in order of time."""
    for _, looks in groupby(survey.looks, lambda look: look.frame.scene):
        found = {sweep.time_us: sweep for look in looks for sweep in look.frame.sweeps}
        yield [found[time_us] for time_us in sorted(found)]


def _off_line_m(before: Sweep, here: Sweep, after: Sweep) -> float:
    share = (here.time_us - before.time_us) / (after.time_us - before.time_us)
    start = before.global_from_lidar.translation
    line = start + share * (after.global_from_lidar.translation - start)
    return float(np.linalg.norm(here.global_from_lidar.translation - line))


def _neighbours_m(look: Look) -> tuple[float, float] | None:
    """Mean distance of raised points to an earlier sweep's, with and without the poses [m].

    None where the car hardly moved in between.
    """
    if look.before is None:
        return None
    key_from_before = look.global_from_lidar.inverse() @ look.frame.sweeps[-1].global_from_lidar
    if np.linalg.norm(key_from_before.translation) < _MOVED_M:
        return None
    tree = KDTree(_raised(look.rows[:, :3]))
    before = _raised(look.before)
    if not tree.n or not len(before):
        return None
    before = before[:: max(1, len(before) // _POINTS)]
    moved = tree.query(key_from_before.apply(before), distance_upper_bound=2.0)[0]
    unmoved = tree.query(before, distance_upper_bound=2.0)[0]
    return float(np.minimum(moved, 2.0).mean()), float(np.minimum(unmoved, 2.0).mean())


def _raised(xyz: np.ndarray) -> np.ndarray:
    """Points near the car that stand up from the ground."""
    away = np.linalg.norm(xyz[:, :2], axis=1)
    low = np.percentile(xyz[:, 2], 10) if len(xyz) else 0.0
    return xyz[(away > 3) & (away < _AROUND_M) & (xyz[:, 2] > low + 0.7)]

"""Reads LiDAR sweeps and merges them into the key sweep's frame (ego-motion compensation)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clipsweep.projection import kernels
from clipsweep.projection.errors import BadInput
from clipsweep.projection.frames import Cloud, Frame, Sweep, SweepLayout
from clipsweep.projection.pose import Pose

_RANGE_MAX_M = 300.0


def _read(sweep: Sweep, columns: int) -> Float32[np.ndarray, "n c"]:
    """Raw rows of a sweep file, as a view of its bytes."""
    path = sweep.points.path
    data = sweep.points.read()
    if not data or len(data) % (4 * columns):
        raise BadInput(
            path,
            f"{len(data)} bytes are no whole number of {columns}-float points",
            "copy the file again",
        )
    return np.frombuffer(data, np.float32).reshape(-1, columns)


def _check(path: Path, bad: int, points: int, bad_share: float) -> None:
    if bad > bad_share * points:
        raise BadInput(
            path, f"{bad} of {points} points are not finite or beyond {_RANGE_MAX_M:.0f} m"
        )


def read_sweep(sweep: Sweep, layout: SweepLayout) -> Float32[np.ndarray, "n c"]:
    """Reads the raw points of a LiDAR sweep.

    Columns are x, y, z [m] in its own LiDAR frame, intensity, then whatever the sensor adds.

    Args:
        sweep: the sweep to read.
        layout: layout of its file; returns of the ego vehicle stay, and bad rows become NaN.

    Raises:
        BadInput: the file is not the indexed one, no whole number of points, empty, or has too many
            bad points.
    """
    points = _read(sweep, layout.columns)
    good = (np.abs(points[:, :3]) <= _RANGE_MAX_M).all(axis=1) & np.isfinite(points[:, 3])
    bad = len(points) - int(good.sum())
    _check(sweep.points.path, bad, len(points), layout.bad_share)
    return np.where(good[:, None], points, np.float32(np.nan)) if bad else points


def merge(frame: Frame, sweeps: int, layout: SweepLayout) -> Cloud:
    """Ego-motion compensation: merges a frame's newest sweeps into its key sweep's LiDAR frame.

    The chain is ``key_from_sweep = inv(global_from_key) @ global_from_sweep``, composed in float64
    and applied in float32 (under 1e-4 m at 100 m).

    Args:
        frame: the key frame; it may have fewer sweeps than asked for.
        sweeps: how many, the key sweep included.
        layout: layout of the sweep files, and which returns are left out.

    Raises:
        BadInput: a sweep cannot be used.
        ValueError: no sweep is asked for, or the frame has none.
    """
    if sweeps < 1 or not frame.sweeps:
        raise ValueError(f"sweeps={sweeps} of frame {frame.id}, which has {len(frame.sweeps)}")
    chosen = frame.sweeps[:sweeps]
    most = sum(sweep.points.bytes for sweep in chosen) // (4 * layout.columns)
    cloud = _room(most, len(chosen))
    key_from_global = frame.sweeps[0].global_from_lidar.inverse()
    end = 0
    for index, sweep in enumerate(chosen):
        start = end
        raw = _read(sweep, layout.columns)
        key_from_sweep = key_from_global @ sweep.global_from_lidar if index else Pose.identity()
        matrix = key_from_sweep.matrix().astype(np.float32)
        end, bad = kernels.take_sweep(
            raw,
            matrix,
            layout.ego_box_m,
            _RANGE_MAX_M,
            layout.intensity_scale,
            start,
            cloud.xyz,
            cloud.intensity,
            cloud.source,
        )
        _check(sweep.points.path, bad, len(raw), layout.bad_share)
        cloud.age_s[start:end] = (frame.time_us - sweep.time_us) * 1e-6
        cloud.sweep[start:end] = index
        cloud.origin[index] = matrix[:, 3]
    return Cloud(
        cloud.xyz[:end],
        cloud.intensity[:end],
        cloud.age_s[:end],
        cloud.sweep[:end],
        cloud.source[:end],
        cloud.origin,
    )


def deskew(
    xyz: Float32[np.ndarray, "n 3"], time_s: Float32[np.ndarray, " n"], sweep: Sweep, other: Sweep
) -> Float32[np.ndarray, "n 3"]:
    """Deskew: motion compensation within a sweep, each point as seen at the sweep's own time.

    nuScenes and KITTI write their points like this already; a reader of raw logs calls it once. The
    sensor is taken to turn and to move at constant rates in its own frame:
    ``x = exp(w t) p + v t``, with ``w`` and ``v`` from the poses of two sweeps.

    Args:
        xyz: points in the sensor's frame at the time that each was seen [m].
        time_s: that time less the sweep's [s]; points before it have negative ones.
        sweep: the sweep that they belong to.
        other: the one before or after it in time.

    Raises:
        ValueError: both sweeps are of the same time.
    """
    seconds = (other.time_us - sweep.time_us) * 1e-6
    if not seconds:
        raise ValueError(f"both sweeps are of {sweep.time_us} us, which determines no motion")
    motion = sweep.global_from_lidar.inverse() @ other.global_from_lidar
    out = np.empty_like(xyz)
    kernels.deskew(xyz, time_s, motion.axis_angle() / seconds, motion.translation / seconds, out)
    return out


def _room(points: int, sweeps: int) -> Cloud:
    """Allocates a point cloud to be filled, its points in one block of memory.

    From 4 MB on NumPy asks for huge pages, which halves a merge.
    """
    block = np.empty(25 * points, np.uint8)
    words = block[: 24 * points].view(np.float32)
    xyz = words[: 3 * points].reshape(-1, 3)
    rest = words[3 * points :]
    return Cloud(
        xyz=xyz,
        intensity=rest[:points],
        age_s=rest[points : 2 * points],
        sweep=block[24 * points :],
        source=rest[2 * points :].view(np.int32),
        origin=np.empty((sweeps, 3), np.float32),
    )


def choose_sweeps(
    frame: Frame,
    count: int,
    among: int = 0,
    max_age_s: float = np.inf,
    random: np.random.Generator | None = None,
) -> Frame:
    """Chooses the sweeps of a key frame: its key sweep and at most ``count - 1`` older ones.

    Args:
        frame: the key frame.
        count: sweeps wanted, the key sweep included.
        among: with ``random``, the older ones are drawn from the newest ``among - 1`` and kept in
            order of age (the reference draws 2 of the 9 before); otherwise they are the newest.
        max_age_s: older sweeps than this are never taken [s].
        random: generator to draw with.

    Raises:
        ValueError: no sweep is wanted, or the frame has none.
    """
    if count < 1 or not frame.sweeps:
        raise ValueError(f"count={count} of frame {frame.id}, which has {len(frame.sweeps)} sweeps")
    older = [s for s in frame.sweeps[1:] if frame.time_us - s.time_us <= max_age_s * 1e6]
    if random is not None and among > count:
        older = older[: among - 1]
        drawn = random.choice(len(older), min(count - 1, len(older)), replace=False)
        older = [older[i] for i in sorted(drawn)]
    return replace(frame, sweeps=(frame.sweeps[0], *older[: count - 1]))

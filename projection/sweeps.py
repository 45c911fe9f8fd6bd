"""Reads LiDAR sweeps and merges them into the key sweep's frame."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32

from projection.errors import BadInput
from projection.frames import Cloud, Frame, Sweep

_RANGE_MAX_M = 300.0


def read_sweep(sweep: Sweep, columns: int, bad_share: float = 0.0) -> Float32[np.ndarray, "n c"]:
    """The raw rows of a sweep: x, y, z [m] in its own LiDAR frame, intensity, then whatever the sensor adds.

    Args:
        sweep: the sweep to read.
        columns: float32 values a point: 5 in nuScenes files, 4 in KITTI's.
        bad_share: share of points that may have coordinates that are not finite or beyond 300 m. Such rows become
            NaN, and ``merge`` leaves them out.

    Raises:
        BadInput: the file is not the indexed one, no whole number of points, empty, or has too many bad points.
    """
    path, data = sweep.points.path, sweep.points.read()
    if not data or len(data) % (4 * columns):
        raise BadInput(
            path, f"{len(data)} bytes are no whole number of {columns}-float points", "copy the file again"
        )
    points = np.frombuffer(data, np.float32).reshape(-1, columns)
    good = (np.abs(points[:, :3]) <= _RANGE_MAX_M).all(axis=1) & np.isfinite(points[:, 3])
    bad = len(points) - int(good.sum())
    if bad > bad_share * len(points):
        raise BadInput(path, f"{bad} of {len(points)} points are not finite or beyond {_RANGE_MAX_M:.0f} m")
    if bad:
        points = np.where(good[:, None], points, np.float32(np.nan))
    return points


def merge(
    frame: Frame, sweeps: int, columns: int, intensity_scale: float, ego_box_m: float, bad_share: float = 0.0
) -> Cloud:
    """Merges the newest ``sweeps`` sweeps of a frame into its key sweep's LiDAR frame.

    The chain is ``key_from_sweep = inv(global_from_key) @ global_from_sweep``, composed in float64.

    Args:
        frame: the key frame; it may have fewer sweeps than asked for.
        sweeps: how many, the key sweep included.
        columns: see ``read_sweep``.
        intensity_scale: the file's intensity of a full return.
        ego_box_m: returns with |x| and |y| below this in their own LiDAR frame hit the car itself and are left
            out; 0 keeps all.
        bad_share: see ``read_sweep``.

    Raises:
        BadInput: a sweep cannot be used.
    """
    key_from_global = frame.sweeps[0].global_from_lidar.inverse()
    parts: list[Cloud] = []
    for index, sweep in enumerate(frame.sweeps[:sweeps]):
        raw = read_sweep(sweep, columns, bad_share)
        on_car = (np.abs(raw[:, 0]) < ego_box_m) & (np.abs(raw[:, 1]) < ego_box_m)
        rows = np.flatnonzero(~on_car & ~np.isnan(raw[:, 0])).astype(np.int32)
        kept = raw[rows]
        xyz = kept[:, :3]
        if index:
            xyz = (key_from_global @ sweep.global_from_lidar).apply(xyz).astype(np.float32)
        age_s = np.float32((frame.time_us - sweep.time_us) * 1e-6)
        parts.append(
            Cloud(
                xyz=np.ascontiguousarray(xyz),
                intensity=np.clip(kept[:, 3] / np.float32(intensity_scale), 0, 1),
                age_s=np.full(len(rows), age_s),
                sweep=np.full(len(rows), index, np.uint8),
                source=rows,
            )
        )
    return Cloud(*(np.concatenate([getattr(part, name) for part in parts]) for name in Cloud.__slots__))

"""LiDAR simulation kernels: ray casting at each ray's firing time, points counted in boxes."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from clipsweep.pipeline.demo.ground import NO_PAINT, OTHER_FLAT, SIDEWALK, TERRAIN
from clipsweep.pipeline.demo.ray_kernels import (
    bound_m,
    cell_of,
    hit_ground,
    hit_part,
    kernel,
    normal,
    slope_at,
    to_local,
)
from clipsweep.projection.jit import jit

BINS = 128
RANGE_M = 80.0
EGO = 31


class Turn(NamedTuple):
    """LiDAR rays of one turn, by column and ring.

    Per column its origin [m], rotation street_from_lidar and firing time [s]; per ray its direction
    in the LiDAR frame and the distance to the car itself [m].
    """

    origins: Float[np.ndarray, "c 3"]
    turned: Float[np.ndarray, "c 3 3"]
    fired_s: Float[np.ndarray, "c"]
    rays: Float[np.ndarray, "c r 3"]
    ego_m: Float[np.ndarray, "c r"]


@kernel
def cast_car(car: Any, at: Any, rays: Any, out: Any) -> Any:
    """Self-hits: distance from the LiDAR to the car's own body along each ray, inf if none [m].

    `at` and `rays` (columns, rings, 3) are in the car's frame.
    """
    for c in range(rays.shape[0]):
        for r in range(rays.shape[1]):
            out[c, r] = math.inf
            for i in range(len(car.kind)):
                x = at[0] - car.centre_m[i, 0]
                y = at[1] - car.centre_m[i, 1]
                z = at[2] - car.centre_m[i, 2]
                out[c, r] = min(
                    out[c, r],
                    hit_part(car, i, x, y, z, rays[c, r, 0], rays[c, r, 1], rays[c, r, 2]),
                )


@jit
def fill_bins(prims: Any, origin: Any, time_s: Any, reach_m: Any, slack_rad: Any) -> Any:
    """Azimuth bins for ray casting: candidate parts of the rays in each bin (see Lists).

    There are BINS of them in the street frame; writes starts, items and near.

    `reach_m` is how far car and parts may move against each other during the turn that ends at
    `time_s`, `slack_rad` by how much the azimuths of a column's rays may differ because the car is
    not level.
    """
    n = len(prims.kind)
    near = np.empty(n)
    spans = np.zeros((n, 2), np.int64)
    starts = np.zeros(BINS + 1, np.int64)
    for i in range(n):
        cx = prims.centre_m[i, 0] + prims.velocity_mps[i, 0] * time_s - origin[0]
        cy = prims.centre_m[i, 1] + prims.velocity_mps[i, 1] * time_s - origin[1]
        cz = prims.centre_m[i, 2] + prims.velocity_mps[i, 2] * time_s - origin[2]
        x, y, z = to_local(prims.axes, i, -cx, -cy, -cz)
        near[i] = max(bound_m(prims, i, x, y, z) - reach_m, 0.0)
        if near[i] > RANGE_M:
            continue
        hx = prims.half_m[i, 0]
        hy = prims.half_m[i, 1]
        hz = prims.half_m[i, 2]
        radius = math.sqrt(hx * hx + hy * hy + hz * hz) + reach_m
        distance = math.sqrt(cx * cx + cy * cy)
        wide = math.pi if distance <= radius else math.asin(radius / distance) + slack_rad
        middle = math.atan2(cy, cx) + 4 * math.pi
        spans[i, 0] = math.floor((middle - wide) / (2 * math.pi) * BINS)
        spans[i, 1] = (
            min(math.floor((middle + wide) / (2 * math.pi) * BINS), spans[i, 0] + BINS - 1) + 1
        )
        for b in range(spans[i, 0], spans[i, 1]):
            starts[b % BINS + 1] += 1
    starts = np.cumsum(starts)
    ends = starts[:-1].copy()
    items = np.empty(starts[-1], np.int64)
    for i in np.argsort(near):
        for b in range(spans[i, 0], spans[i, 1]):
            items[ends[b % BINS]] = i
            ends[b % BINS] += 1
    return starts, items, near


@kernel
def cast_turn(
    prims: Any,
    ground: Any,
    turn: Any,
    lists: Any,
    local: Any,
    range_m: Any,
    part: Any,
    label: Any,
    cosine: Any,
    reflect: Any,
) -> Any:
    """LiDAR ray casting of one turn, each column at its own firing time (see spin.Hits).

    `local` (parts, 3) is scratch room.
    """
    for c in range(turn.rays.shape[0]):
        t = turn.turned[c]
        ox = turn.origins[c, 0]
        oy = turn.origins[c, 1]
        oz = turn.origins[c, 2]
        fired_s = turn.fired_s[c]
        u = turn.rays[c, 0, 0]
        v = turn.rays[c, 0, 1]
        w = 0.0
        ahead = math.atan2(t[1, 0] * u + t[1, 1] * v, t[0, 0] * u + t[0, 1] * v) + 4 * math.pi
        b = math.floor(ahead / (2 * math.pi) * BINS) % BINS
        items = lists.items[lists.starts[b] : lists.starts[b + 1]]
        for i in items:
            x = ox - prims.centre_m[i, 0] - prims.velocity_mps[i, 0] * fired_s
            y = oy - prims.centre_m[i, 1] - prims.velocity_mps[i, 1] * fired_s
            z = oz - prims.centre_m[i, 2] - prims.velocity_mps[i, 2] * fired_s
            local[i, 0], local[i, 1], local[i, 2] = to_local(prims.axes, i, x, y, z)
        for r in range(turn.rays.shape[1]):
            u = turn.rays[c, r, 0]
            v = turn.rays[c, r, 1]
            w = turn.rays[c, r, 2]
            dx = t[0, 0] * u + t[0, 1] * v + t[0, 2] * w
            dy = t[1, 0] * u + t[1, 1] * v + t[1, 2] * w
            dz = t[2, 0] * u + t[2, 1] * v + t[2, 2] * w
            hit = _one_ray(
                prims, ground, ox, oy, oz, dx, dy, dz, local, items, lists.near, turn.ego_m[c, r]
            )
            range_m[c, r], part[c, r], label[c, r], cosine[c, r], reflect[c, r] = hit


@kernel
def _one_ray(
    prims: Any,
    ground: Any,
    ox: Any,
    oy: Any,
    oz: Any,
    dx: Any,
    dy: Any,
    dz: Any,
    local: Any,
    items: Any,
    near: Any,
    ego_m: Any,
) -> Any:
    """First hit of a LiDAR ray: distance, part, label, cosine of incidence and reflectance."""
    best, surface, kerb = hit_ground(ground, ox, oy, oz, dx, dy, dz)
    part = -1
    lx = 0.0
    ly = 0.0
    lz = 0.0
    for i in items:
        if near[i] > best or near[i] > ego_m:
            break
        u, v, w = to_local(prims.axes, i, dx, dy, dz)
        t = hit_part(prims, i, local[i, 0], local[i, 1], local[i, 2], u, v, w)
        if t < best:
            best = t
            part = i
            lx = u
            ly = v
            lz = w
    if ego_m < best:
        return ego_m, -1, EGO, 0.5, 0.2
    if best > RANGE_M:
        return math.inf, -1, 0, 0.0, 0.0
    if part < 0:
        x = ox + best * dx
        y = oy + best * dy
        slope = slope_at(ground, x)
        cosine = 0.7 if kerb else (slope * dx - dz) / math.sqrt(1.0 + slope * slope)
        return best, -1, surface, cosine, _ground_reflect(ground, surface, x, y)
    x = local[part, 0] + best * lx
    y = local[part, 1] + best * ly
    z = local[part, 2] + best * lz
    nx, ny, nz, _ = normal(prims, part, x, y, z)
    return best, part, prims.label[part], abs(nx * lx + ny * ly + nz * lz), prims.reflect[part]


@kernel
def _ground_reflect(ground: Any, surface: Any, x: Any, y: Any) -> Any:
    """LiDAR reflectance of the ground: asphalt dark, paint bright, grass and concrete between."""
    if surface == TERRAIN:
        return 0.30
    if surface == SIDEWALK:
        return 0.22
    if surface == OTHER_FLAT:
        return 0.16
    row, column = cell_of(ground, x, y)
    return 0.09 if ground.paint[row, column] == NO_PAINT else 0.55


@jit
def count_in_boxes(xyz: Any, placed: Any, half: Any) -> Any:
    """Number of points inside each oriented 3D box.

    `placed` are the boxes' poses (4, 4) in the points' frame, `half` half their sides [m].
    """
    counts = np.zeros(len(placed), np.int64)
    for i in range(len(placed)):
        axes = placed[i, :3, :3]
        centre = placed[i, :3, 3]
        reach = half[i, 0] + half[i, 1] + half[i, 2]
        for j in range(len(xyz)):
            x = xyz[j, 0] - centre[0]
            y = xyz[j, 1] - centre[1]
            if abs(x) <= reach and abs(y) <= reach:
                z = xyz[j, 2] - centre[2]
                u = axes[0, 0] * x + axes[1, 0] * y + axes[2, 0] * z
                v = axes[0, 1] * x + axes[1, 1] * y + axes[2, 1] * z
                w = axes[0, 2] * x + axes[1, 2] * y + axes[2, 2] * z
                counts[i] += abs(u) <= half[i, 0] and abs(v) <= half[i, 1] and abs(w) <= half[i, 2]
    return counts

"""Ray casting kernels: intersection with primitives and the ground, distances and normals."""

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int64

from clipsweep.pipeline.demo.ground import DRIVEABLE, KERB_M, STEP_M
from clipsweep.pipeline.demo.parts import BOX, ELLIPSOID
from clipsweep.projection.jit import jit

kernel = partial(jit, forceinline=True, _nrt=False)
"""For functions called per ray.

Inlined, and without numba's reference counting of arrays, which is all that they
would otherwise spend their time on (five to ten times slower); in return they must not allocate."""
_NEAR_M = 1e-4
_FAR_M = 1000.0
"""Hills farther than this are not looked for."""
_CLOSE_M = 1e-3
"""The search for the ground on a ray ends when it is as near as this."""


class Lists(NamedTuple):
    """Candidate parts of each tile or azimuth bin k, near to far.

    items[starts[k]:starts[k + 1]] are those of bin k.

    `near` is each part's least possible distance [m].
    """

    starts: Int64[np.ndarray, "k"]
    items: Int64[np.ndarray, "m"]
    near: Float[np.ndarray, "n"]


@kernel
def to_local(axes: Any, i: Any, x: Any, y: Any, z: Any) -> Any:
    """Rotates a direction of the street frame into part i's own axes."""
    return (
        axes[i, 0, 0] * x + axes[i, 1, 0] * y + axes[i, 2, 0] * z,
        axes[i, 0, 1] * x + axes[i, 1, 1] * y + axes[i, 2, 1] * z,
        axes[i, 0, 2] * x + axes[i, 1, 2] * y + axes[i, 2, 2] * z,
    )


@kernel
def hit_box(
    ox: Any,
    oy: Any,
    oz: Any,
    dx: Any,
    dy: Any,
    dz: Any,
    hx: Any,
    hy: Any,
    hz: Any,
    kx: Any,
    ky: Any,
) -> Any:
    """Ray-box intersection: entry distance, or inf; the top may taper. From inside: inf."""
    ax = hx * kx / (2 * hz)
    ay = hy * ky / (2 * hz)
    near = -math.inf
    far = math.inf
    for side in range(6):
        if side < 2:
            s = 1.0 - 2.0 * side
            speed = s * dx + ax * dz
            gap = hx - ax * hz - (s * ox + ax * oz)
        elif side < 4:
            s = 1.0 - 2.0 * (side - 2)
            speed = s * dy + ay * dz
            gap = hy - ay * hz - (s * oy + ay * oz)
        else:
            s = 1.0 - 2.0 * (side - 4)
            speed = s * dz
            gap = hz - s * oz
        if speed > 1e-12:
            far = min(far, gap / speed)
        elif speed < -1e-12:
            near = max(near, gap / speed)
        elif gap < 0:
            return math.inf
        if near > far:
            return math.inf
    return near if near > _NEAR_M else math.inf


@kernel
def hit_ball(
    ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any, hx: Any, hy: Any, hz: Any
) -> Any:
    """Ray-ellipsoid intersection: entry distance, or inf."""
    ox = ox / hx
    oy = oy / hy
    oz = oz / hz
    dx = dx / hx
    dy = dy / hy
    dz = dz / hz
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - 1.0
    root = b * b - a * c
    if root < 0:
        return math.inf
    t = (-b - math.sqrt(root)) / a
    return t if t > _NEAR_M else math.inf


@kernel
def hit_tube(
    ox: Any,
    oy: Any,
    oz: Any,
    dx: Any,
    dy: Any,
    dz: Any,
    hx: Any,
    hy: Any,
    hz: Any,
    taper: Any,
    hole: Any,
) -> Any:
    """Ray-cylinder or ray-cone intersection: entry distance, or inf.

    The axis is z; the caps may have a hole.
    """
    ox = ox / hx
    oy = oy / hy
    dx = dx / hx
    dy = dy / hy
    # radius at height z: m - k z
    k = taper / (2 * hz)
    m = 1.0 - taper / 2
    best = math.inf
    a = dx * dx + dy * dy - k * k * dz * dz
    r0 = m - k * oz
    b = ox * dx + oy * dy + k * dz * r0
    c = ox * ox + oy * oy - r0 * r0
    root = b * b - a * c
    if root >= 0 and abs(a) > 1e-12:
        root = math.sqrt(root)
        for sign in (-1.0, 1.0):
            t = (-b + sign * root) / a
            outside = hole == 0.0 or dx * (ox + t * dx) + dy * (oy + t * dy) < 0
            if (
                _NEAR_M < t < best
                and abs(oz + t * dz) <= hz
                and m - k * (oz + t * dz) >= 0
                and outside
            ):
                best = t
    if hole > 0.0 and a > 1e-12:  # a ring's inner wall, met from within (rings have no taper)
        root = b * b - a * (c + r0 * r0 - hole * hole)
        t = (-b + math.sqrt(max(root, 0.0))) / a
        if root > 0 and _NEAR_M < t < best and abs(oz + t * dz) <= hz:
            best = t
    if abs(dz) > 1e-12:
        for s in (-1.0, 1.0):
            t = (s * hz - oz) / dz
            if _NEAR_M < t < best:
                rho = math.sqrt((ox + t * dx) ** 2 + (oy + t * dy) ** 2)
                edge = m - k * s * hz
                if hole * edge <= rho <= edge:
                    best = t
    return best


@kernel
def hit_part(prims: Any, i: Any, ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any) -> Any:
    """Ray-part intersection: entry distance, or inf, of a ray in part i's own frame."""
    hx = prims.half_m[i, 0]
    hy = prims.half_m[i, 1]
    hz = prims.half_m[i, 2]
    if prims.kind[i] == BOX:
        return hit_box(ox, oy, oz, dx, dy, dz, hx, hy, hz, prims.taper[i, 0], prims.taper[i, 1])
    if prims.kind[i] == ELLIPSOID:
        return hit_ball(ox, oy, oz, dx, dy, dz, hx, hy, hz)
    return hit_tube(ox, oy, oz, dx, dy, dz, hx, hy, hz, prims.taper[i, 0], prims.taper[i, 1])


@kernel
def bound_m(prims: Any, i: Any, ox: Any, oy: Any, oz: Any) -> Any:
    """Distance from a point, in part i's own axes, to the part's bounding box.

    No hit is nearer [m].
    """
    gx = max(abs(ox) - prims.half_m[i, 0], 0.0)
    gy = max(abs(oy) - prims.half_m[i, 1], 0.0)
    gz = max(abs(oz) - prims.half_m[i, 2], 0.0)
    return math.sqrt(gx * gx + gy * gy + gz * gz)


@kernel
def normal(prims: Any, i: Any, x: Any, y: Any, z: Any) -> Any:
    """Surface normal: outward unit normal and face at a surface point of part i.

    In the part's own axes.

    0, 1, 2 by axis, 3 if round.
    """
    hx = prims.half_m[i, 0]
    hy = prims.half_m[i, 1]
    hz = prims.half_m[i, 2]
    if prims.kind[i] == BOX:
        ax = hx * prims.taper[i, 0] / (2 * hz)
        ay = hy * prims.taper[i, 1] / (2 * hz)
        gx = abs(x) + ax * (z + hz) - hx
        gy = abs(y) + ay * (z + hz) - hy
        gz = abs(z) - hz
        if gx >= gy and gx >= gz:
            nx = math.copysign(1.0, x)
            ny = 0.0
            nz = ax
            face = 0
        elif gy >= gz:
            nx = 0.0
            ny = math.copysign(1.0, y)
            nz = ay
            face = 1
        else:
            return 0.0, 0.0, math.copysign(1.0, z), 2
    elif prims.kind[i] == ELLIPSOID:
        nx = x / (hx * hx)
        ny = y / (hy * hy)
        nz = z / (hz * hz)
        face = 3
    else:
        if abs(z) > hz - 1e-6:
            return 0.0, 0.0, math.copysign(1.0, z), 2
        rho = math.sqrt(x * x + y * y) + 1e-9
        if rho < 0.5 * (1.0 + prims.taper[i, 1]) * hx and prims.taper[i, 1] > 0:
            return -x / rho, -y / rho, 0.0, 3
        nx = x / rho
        ny = y / rho
        nz = prims.taper[i, 0] * hx / (2 * hz)
        face = 3
    length = math.sqrt(nx * nx + ny * ny + nz * nz)
    return nx / length, ny / length, nz / length, face


@kernel
def cell_of(ground: Any, x: Any, y: Any) -> Any:
    """Ground map cell, row and column, at a position of the street frame.

    The map's border continues outside.
    """
    rows, columns = ground.surface.shape
    row = min(max(math.floor((y - ground.corner_m[1]) / STEP_M), 0), rows - 1)
    column = min(max(math.floor((x - ground.corner_m[0]) / STEP_M), 0), columns - 1)
    return row, column


@kernel
def surface_at(ground: Any, x: Any, y: Any) -> Any:
    """Ground label: raw label at a position of the street frame."""
    row, column = cell_of(ground, x, y)
    return ground.surface[row, column]


@kernel
def _kerb_face(
    ground: Any, top: Any, low: Any, label: Any, ox: Any, oy: Any, dx: Any, dy: Any
) -> Any:
    """Kerb intersection: where a ray enters the face of a kerb, by bisection, and the label.

    The ray is above the road at `top` and in the kerb at `low`.
    """
    for _ in range(6):
        middle = 0.5 * (top + low)
        found = surface_at(ground, ox + middle * dx, oy + middle * dy)
        if found == DRIVEABLE:
            top = middle
        else:
            low = middle
            label = found
    return low, label


@kernel
def slope_at(ground: Any, x: Any) -> Any:
    """Slope of the ground towards +x at a position along the street (see ground.Hills)."""
    hills = ground.hills
    if hills.crest_m == 0.0:
        return 0.0
    waves = (x - hills.valley_m) / hills.wave_m
    u = 2.0 * (waves - math.floor(waves + 0.5))
    return 12.0 * hills.crest_m / hills.wave_m * u * (1.0 - abs(u))


@kernel
def _come_down(hills: Any, lift: Any, roof: Any, t: Any, ox: Any, oz: Any, dx: Any, dz: Any) -> Any:
    """Ray marching over hills: first distance from `t` on at which the ray is `lift` above them.

    Answers that (inf: never) and False, or a distance at which the ray has risen more than `roof`
    above them again, and True. The height of the ray above the hills bends down by at most `bend`,
    so that it stays above gap + climb * s - bend * s^2 / 2 for all steps s. A step to the zero of
    that misses nothing, and near the ground it is Newton's.
    """
    # in waves
    start = (ox - hills.valley_m) / hills.wave_m
    speed = dx / hills.wave_m
    steep = 12.0 * hills.crest_m * speed
    bend = 24.0 * hills.crest_m * speed * speed + 1e-12
    for _ in range(64):
        waves = start + t * speed
        u = 2.0 * (waves - math.floor(waves + 0.5))
        away = abs(u)
        z = oz + t * dz - lift
        gap = z - hills.crest_m * away * away * (3.0 - 2.0 * away)
        climb = dz - steep * u * (1.0 - away)
        if climb > 0.0 and gap > roof:
            return t, True
        if dz >= 0.0 and z > hills.crest_m:
            return math.inf, False
        root = math.sqrt(climb * climb + 2.0 * bend * max(gap, 0.0))
        if climb < 0.0:
            step = 2.0 * max(gap, 0.0) / (root - climb)
            if bend * step * step < -_CLOSE_M * climb:  # Newton's error is half of this over climb
                return t + step, False
        elif roof < math.inf:
            step = max(climb / bend, _CLOSE_M)  # no farther than to where it may be highest
        else:
            step = (climb + root) / bend
        t += step
        if step < _CLOSE_M:
            return t, False
        if t > _FAR_M:
            return math.inf, False
    return math.inf, False


@partial(jit, _nrt=False)  # not inlined, so that a flat street's rays do not carry it along
def _hit_hills(ground: Any, ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any) -> Any:
    """Ray-ground intersection where the street goes up and down (see hit_ground)."""
    hills = ground.hills
    t = 0.0
    if dz > 3.0 * hills.crest_m / hills.wave_m * abs(dx):
        return math.inf, 0, False
    for _ in range(4):  # over a crest a ray may dip below a kerb's height and leave it again
        top, _ = _come_down(hills, KERB_M, math.inf, t, ox, oz, dx, dz)
        if top == math.inf:
            break
        label = surface_at(ground, ox + top * dx, oy + top * dy)
        if label != DRIVEABLE:
            return top, label, False
        low, left = _come_down(hills, 0.0, KERB_M + 1e-4, top, ox, oz, dx, dz)
        if low == math.inf:
            break
        label = surface_at(ground, ox + low * dx, oy + low * dy)
        if label != DRIVEABLE:
            low, label = _kerb_face(ground, top, low, label, ox, oy, dx, dy)
            return low, label, True
        if not left:
            return low, label, False
        t = low
    return math.inf, 0, False


@kernel
def hit_ground(ground: Any, ox: Any, oy: Any, oz: Any, dx: Any, dy: Any, dz: Any) -> Any:
    """Ray-ground intersection: distance (inf: none), label, whether it is a kerb's face."""
    if ground.hills.crest_m > 0.0:
        return _hit_hills(ground, ox, oy, oz, dx, dy, dz)
    if dz > -1e-6:
        return math.inf, 0, False
    top = (KERB_M - oz) / dz
    label = surface_at(ground, ox + top * dx, oy + top * dy)
    if label != DRIVEABLE:
        return top, label, False
    low = -oz / dz
    label = surface_at(ground, ox + low * dx, oy + low * dy)
    if label == DRIVEABLE:
        return low, label, False
    low, label = _kerb_face(ground, top, low, label, ox, oy, dx, dy)
    return low, label, True

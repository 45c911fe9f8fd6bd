"""Procedural textures for rendering: colours of surfaces, ground and sky at the hit point."""

import math
from typing import Any

from clipsweep.pipeline.demo.ground import OTHER_FLAT, SIDEWALK, TERRAIN, WHITE_PAINT, YELLOW_PAINT
from clipsweep.pipeline.demo.parts import (
    BANDS,
    BLOCKS,
    BRICK,
    BUS,
    CAB,
    CABIN,
    CAR,
    DIAGONAL,
    FOLIAGE,
    PLATE,
    RIBS,
    SIGNAL,
    WHEEL,
    WINDOWS,
)
from clipsweep.pipeline.demo.ray_kernels import cell_of, kernel


@kernel
def hashed(i: Any, j: Any, k: Any) -> Any:
    """Hash noise: a number in [0, 1) that depends on three integers."""
    h = (i * 73856093) ^ (j * 19349663) ^ (k * 83492791)
    h = ((h ^ (h >> 13)) * 1274126177) & 0x7FFFFFFF
    h = ((h ^ (h >> 15)) * 2246822519) & 0x7FFFFFFF
    return (h ^ (h >> 11)) / 2147483648.0


@kernel
def noise(x: Any, y: Any, z: Any) -> Any:
    """Value noise in [0, 1], smooth, with one knot per unit."""
    fx = math.floor(x)
    fy = math.floor(y)
    fz = math.floor(z)
    i = int(fx)
    j = int(fy)
    k = int(fz)
    x = x - fx
    y = y - fy
    z = z - fz
    x = x * x * (3 - 2 * x)
    y = y * y * (3 - 2 * y)
    z = z * z * (3 - 2 * z)
    low = (hashed(i, j, k) * (1 - x) + hashed(i + 1, j, k) * x) * (1 - y) + (
        hashed(i, j + 1, k) * (1 - x) + hashed(i + 1, j + 1, k) * x
    ) * y
    high = (hashed(i, j, k + 1) * (1 - x) + hashed(i + 1, j, k + 1) * x) * (1 - y) + (
        hashed(i, j + 1, k + 1) * (1 - x) + hashed(i + 1, j + 1, k + 1) * x
    ) * y
    return low * (1 - z) + high * z


@kernel
def _stripe(value: Any, period: Any, share: Any) -> Any:
    """Stripe pattern: whether `value` lies in the first `share` of its period."""
    return value / period - math.floor(value / period) < share


@kernel
def accented(
    look: Any,
    face: Any,
    x: Any,
    y: Any,
    z: Any,
    hx: Any,
    hy: Any,
    hz: Any,
    p0: Any,
    p1: Any,
    p2: Any,
) -> Any:
    """Texture accent: share of the accent colour, 0..1, at a surface point of a part.

    The point is in the part's own axes.

    `hx`, `hy`, `hz` are half the part's sides [m], `p0`, `p1`, `p2` its pattern (looks: see parts).
    """
    u, half = (y, hy) if face == 0 else (x, hx)
    if look == WINDOWS:
        return _windows(face, u + half, z + hz, hx, hz, p0, p1, p2)
    if look == RIBS:
        return 0.55 if face != 2 and _stripe(u + half, p0, 0.35) else 0.0
    v = (z + hz) / (2 * hz)
    return 1.0 if _in_accent(look, face, x, y, z, u, v, hx, hy, hz, half, p0, p1, p2) else 0.0


@kernel
def _in_accent(
    look: Any,
    face: Any,
    x: Any,
    y: Any,
    z: Any,
    u: Any,
    v: Any,
    hx: Any,
    hy: Any,
    hz: Any,
    half: Any,
    p0: Any,
    p1: Any,
    p2: Any,
) -> Any:
    """Texture accent of patterns without blending: whether a point has the accent colour.

    `u` is its place along the face, -`half`..`half` [m], `v` its height, 0..1.
    """
    if look == BANDS:
        return face != 2 and (p1 < v < p1 + p0 or p2 < v < p2 + p0)
    if look == DIAGONAL:
        return _stripe(x + z, p0, 0.5)
    if look == BLOCKS:
        return _stripe(u + half, 2 * p0, 0.5)
    if look == BUS:
        return _bus_glass(face, x, y, v, hx, hy, p0)
    if look == CABIN:
        return _cabin_glass(face, x, u, v, hx, half)
    if look == CAB:
        return _cab_glass(face, x, y, v, hx, hy)
    if look == WHEEL:
        return face == 2 and math.sqrt(x * x + y * y) < 0.55 * hx
    if look == PLATE:
        return _plate(face, x, y, z, hx, hy, hz)
    return False


@kernel
def _windows(face: Any, column: Any, row: Any, hx: Any, hz: Any, p0: Any, p1: Any, p2: Any) -> Any:
    """Window pattern of a building: shop windows up to `p2`, then windows every `p0` by `p1` m."""
    if face == 2:
        return 0.0
    if row < p2:
        return 0.85 if _stripe(column, 3.6, 0.62) and 0.5 < row < 2.6 else 0.0
    if row > 2 * hz - 0.7:
        return 0.0
    cell_u = column / p0
    cell_v = (row - p2) / p1
    across = cell_u - math.floor(cell_u)
    up = cell_v - math.floor(cell_v)
    if not (0.22 < across < 0.78 and 0.25 < up < 0.80):
        return 0.0
    return 0.75 + 0.25 * hashed(int(cell_u), int(cell_v), int(hx * 100))


@kernel
def _bus_glass(face: Any, x: Any, y: Any, v: Any, hx: Any, hy: Any, p0: Any) -> Any:
    """Window pattern of a bus: windscreen, rear window, and side windows every `p0` metres."""
    if face == 0:
        low, high, wide = (0.30, 0.86, 0.9) if x > 0 else (0.5, 0.8, 0.7)
        return low < v < high and abs(y) < wide * hy
    return face == 1 and 0.42 < v < 0.80 and _stripe(x + hx, p0, 0.88) and abs(x) < 0.97 * hx


@kernel
def _cabin_glass(face: Any, x: Any, u: Any, v: Any, hx: Any, half: Any) -> Any:
    """Window pattern of a car's cabin: all around, between pillars."""
    pillar = abs(u) > 0.9 * half or (face == 1 and abs(x + 0.05 * hx) < 0.05 * hx)
    return not (face == 2 or pillar or v > 0.9 or v < 0.05)


@kernel
def _cab_glass(face: Any, x: Any, y: Any, v: Any, hx: Any, hy: Any) -> Any:
    """Window pattern of a truck's cab: windscreen and side windows."""
    if face == 0:
        return x > 0 and abs(y) < 0.88 * hy and 0.42 < v < 0.9
    return face == 1 and x > -0.5 * hx and abs(x) < 0.8 * hx and 0.45 < v < 0.88


@kernel
def _plate(face: Any, x: Any, y: Any, z: Any, hx: Any, hy: Any, hz: Any) -> Any:
    """Traffic sign texture: rim and bar of the plate."""
    across, along = (abs(x) / hx, abs(y) / hy) if face == 2 else (abs(y) / hy, abs(z) / hz)
    rim = max(across, along)
    return 0.78 < rim < 0.95 or (rim < 0.6 and along < 0.18)


@kernel
def part_colour(prims: Any, i: Any, x: Any, y: Any, z: Any, face: Any) -> Any:
    """Albedo (r, g, b) of part i at a surface point, in the part's own axes."""
    look = prims.look[i]
    hx = prims.half_m[i, 0]
    hy = prims.half_m[i, 1]
    hz = prims.half_m[i, 2]
    p0 = prims.pattern[i, 0]
    p1 = prims.pattern[i, 1]
    p2 = prims.pattern[i, 2]
    r = prims.colour[i, 0]
    g = prims.colour[i, 1]
    b = prims.colour[i, 2]
    if look == FOLIAGE:
        x = x * p0
        y = y * p0
        z = z * p0
        gain = 0.45 + 0.55 * noise(x + i, y, z) + 0.55 * noise(3.1 * x, 3.1 * y + i, 3.1 * z)
        return r * gain, g * gain, b * gain * 0.9
    if look == BRICK:
        u = y if face == 0 else x
        row = math.floor((z + hz) / p1)
        gain = 0.84 + 0.28 * hashed((math.floor(u / p0 + 0.5 * (row % 2))), int(row), i)
        return r * gain, g * gain, b * gain
    if look == SIGNAL:
        return _signal(x, y, z, hx, hz, int(p0))
    if look == CAR and face == 0 and abs(y) > 0.55 * hy and -0.1 * hz < z < 0.6 * hz:
        return (0.95, 0.94, 0.86) if x > 0 else (0.70, 0.05, 0.05)
    if look == CAR and face == 0 and abs(y) < 0.5 * hy and z < 0.2 * hz:
        return 0.3 * r, 0.3 * g, 0.3 * b
    share = accented(look, face, x, y, z, hx, hy, hz, p0, p1, p2)
    gain = 0.94 + 0.12 * noise(3 * x + i, 3 * y, 3 * z)
    r = gain * (r + share * (prims.accent[i, 0] - r))
    g = gain * (g + share * (prims.accent[i, 1] - g))
    return r, g, gain * (b + share * (prims.accent[i, 2] - b))


@kernel
def _signal(x: Any, y: Any, z: Any, hx: Any, hz: Any, lit: Any) -> Any:
    """Traffic light texture: three lamps on the front, one of them on."""
    lamp = math.floor((z + hz) / (2 * hz) * 3)
    if x > -hx + 1e-6 or abs(y) > 0.14 or lamp < 0 or lamp > 2:
        return 0.07, 0.07, 0.07
    gain = 1.0 if lamp == lit else 0.25
    return gain * (0.1 if lamp == 0 else 0.98), gain * (0.1 if lamp == 2 else 0.85), gain * 0.1


@kernel
def ground_colour(ground: Any, label: Any, x: Any, y: Any, distance: Any) -> Any:
    """Albedo (r, g, b) of the ground at a position [m].

    Fine texture fades with distance lest it flicker.
    """
    row, column = cell_of(ground, x, y)
    which = label - 24
    r = ground.colour[which, 0]
    g = ground.colour[which, 1]
    b = ground.colour[which, 2]
    fade = max(0.0, 1.0 - distance / 45.0)
    gain = 0.90 + 0.20 * noise(0.35 * x, 0.35 * y, which)
    if label == TERRAIN:
        gain *= 0.80 + 0.40 * (fade * noise(6 * x, 6 * y, 1.0) + (1 - fade) * 0.5)
        dry = 0.14 * noise(0.2 * x, 0.2 * y, 7.0)
        r = r * (1 + dry)
        g = g * (1 - 0.4 * dry)
    elif label == SIDEWALK:
        joint = _stripe(x, 1.2, 0.06) or _stripe(y, 1.2, 0.06)
        slab = hashed(math.floor(x / 1.2), math.floor(y / 1.2), 3)
        gain *= (1.0 - 0.30 * fade if joint else 1.0) * (0.95 + 0.1 * slab)
    elif label == OTHER_FLAT:
        j = math.floor(y / 0.25)
        i = math.floor(x / 0.5 + 0.5 * (j % 2))
        gain *= 1.0 + fade * (0.35 * hashed(i, j, 5) - 0.17)
    elif ground.paint[row, column] == WHITE_PAINT:
        r = 0.80
        g = 0.80
        b = 0.78
    elif ground.paint[row, column] == YELLOW_PAINT:
        r = 0.80
        g = 0.62
        b = 0.15
    else:
        gain *= 0.95 + 0.1 * (fade * noise(9 * x, 9 * y, 2.0) + (1 - fade) * 0.5)
    return r * gain, g * gain, b * gain


@kernel
def sky_colour(light: Any, dx: Any, dy: Any, dz: Any) -> Any:
    """Sky colour in a unit direction: a gradient, soft clouds, a glow about the sun."""
    up = min(1.0, max(0.0, dz) * 2.2)
    cloud = 0.0
    if dz > 0.02:
        u = dx / (dz + 0.15)
        v = dy / (dz + 0.15)
        puff = 0.65 * noise(1.3 * u, 1.3 * v, 0.0) + 0.35 * noise(3.7 * u, 3.7 * v, 4.0)
        cloud = light.clouds * max(0.0, min(1.0, 3.0 * (puff - 0.5)))
    glow = (
        light.direct
        * max(0.0, dx * light.sun[0] + dy * light.sun[1] + dz * light.sun[2]) ** 16
        * 0.35
    )
    r = light.horizon[0] + up * (light.zenith[0] - light.horizon[0])
    g = light.horizon[1] + up * (light.zenith[1] - light.horizon[1])
    b = light.horizon[2] + up * (light.zenith[2] - light.horizon[2])
    white = 0.92
    return (
        r + cloud * (white - r) + glow,
        g + cloud * (white - g) + 0.9 * glow,
        b + cloud * (white - b) + 0.6 * glow,
    )

"""Camera rendering kernels: ray casting of each pixel, with light and shadow."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from clipsweep.pipeline.demo.ground import Ground
from clipsweep.pipeline.demo.paint_kernels import ground_colour, part_colour, sky_colour
from clipsweep.pipeline.demo.parts import Primitives
from clipsweep.pipeline.demo.ray_kernels import (
    bound_m,
    hit_ground,
    hit_part,
    kernel,
    normal,
    slope_at,
    to_local,
)
from clipsweep.projection.jit import jit

TILE_PX = 16
SHADE_STEP_M = 0.25
_NEAR_M = 0.1


class Eye(NamedTuple):
    """Camera pose in the street frame and intrinsics: origin [m], street_from_cam, K [px]."""

    origin: Float[np.ndarray, "3"]
    turned: Float[np.ndarray, "3 3"]
    K: Float[np.ndarray, "3 3"]


class Stage(NamedTuple):
    """Scene at one moment for rendering: parts, their centres [m], ground and shadow map.

    Cell (row, column) of `shadow`, true where no sun reaches, is SHADE_STEP_M wide and begins at
    `corner` + (column, row) * SHADE_STEP_M. `high_m` is the height of the road at the middle of
    each column [m].
    """

    prims: Primitives
    centre: Float[np.ndarray, "n 3"]
    ground: Ground
    shadow: Bool[np.ndarray, "s s"]
    corner: Float[np.ndarray, "2"]
    high_m: Float[np.ndarray, "s"]


@jit
def near_to_far(prims: Any, centre: Any, origin: Any) -> Any:
    """Sorts parts by distance of their boxes from a point, with the distance of each [m]."""
    near = np.empty(len(centre))
    for i in range(len(centre)):
        x, y, z = to_local(
            prims.axes,
            i,
            origin[0] - centre[i, 0],
            origin[1] - centre[i, 1],
            origin[2] - centre[i, 2],
        )
        near[i] = bound_m(prims, i, x, y, z)
    return np.argsort(near), near


@kernel
def _corners(prims: Any, centre: Any, i: Any, eye: Any, out: Any) -> Any:
    """Corners of a part's bounding box in the camera's frame [m]."""
    for c in range(8):
        sx = (2.0 * (c & 1) - 1.0) * prims.half_m[i, 0]
        sy = (2.0 * ((c >> 1) & 1) - 1.0) * prims.half_m[i, 1]
        sz = (2.0 * (c >> 2) - 1.0) * prims.half_m[i, 2]
        x = centre[i, 0] - eye.origin[0]
        y = centre[i, 1] - eye.origin[1]
        z = centre[i, 2] - eye.origin[2]
        x += sx * prims.axes[i, 0, 0] + sy * prims.axes[i, 0, 1] + sz * prims.axes[i, 0, 2]
        y += sx * prims.axes[i, 1, 0] + sy * prims.axes[i, 1, 1] + sz * prims.axes[i, 1, 2]
        z += sx * prims.axes[i, 2, 0] + sy * prims.axes[i, 2, 1] + sz * prims.axes[i, 2, 2]
        for k in range(3):
            out[c, k] = eye.turned[0, k] * x + eye.turned[1, k] * y + eye.turned[2, k] * z


@kernel
def _image_box(corners: Any, K: Any) -> Any:
    """Bounding box projected to the image (u0, v0, u1, v1), clipped at the near plane [px].

    Empty (u1 < u0) if behind it.
    """
    u0 = math.inf
    v0 = math.inf
    u1 = -math.inf
    v1 = -math.inf
    for c in range(8):
        # axis 3: the corner itself; else where its edge along the axis meets the near plane
        for axis in range(4):
            d = c if axis == 3 else c ^ (1 << axis)
            z = corners[c, 2]
            other = corners[d, 2]
            if (axis == 3 and z < _NEAR_M) or (axis < 3 and not (z < _NEAR_M <= other)):
                continue
            share = 0.0 if axis == 3 else (_NEAR_M - z) / (other - z)
            x = corners[c, 0] + share * (corners[d, 0] - corners[c, 0])
            y = corners[c, 1] + share * (corners[d, 1] - corners[c, 1])
            z = z + share * (other - z)
            u = K[0, 0] * x / z + K[0, 2]
            v = K[1, 1] * y / z + K[1, 2]
            u0 = min(u0, u)
            v0 = min(v0, v)
            u1 = max(u1, u)
            v1 = max(v1, v)
    return u0, v0, u1, v1


@jit
def fill_tiles(prims: Any, centre: Any, order: Any, eye: Any, h: Any, w: Any) -> Any:
    """Tile culling: starts and items of the parts that may show in each tile (see Lists)."""
    n = len(order)
    rows = (h + TILE_PX - 1) // TILE_PX
    columns = (w + TILE_PX - 1) // TILE_PX
    spans = np.zeros((n, 4), np.int64)
    corners = np.empty((8, 3))
    starts = np.zeros(rows * columns + 1, np.int64)
    for k in range(n):
        _corners(prims, centre, order[k], eye, corners)
        u0, v0, u1, v1 = _image_box(corners, eye.K)
        if u1 < 0 or v1 < 0 or u0 > w or v0 > h or u1 < u0:
            continue
        spans[k, 0] = int(max(u0, 0.0)) // TILE_PX
        spans[k, 1] = int(max(v0, 0.0)) // TILE_PX
        spans[k, 2] = int(min(u1, w - 1.0)) // TILE_PX + 1
        spans[k, 3] = int(min(v1, h - 1.0)) // TILE_PX + 1
        for row in range(spans[k, 1], spans[k, 3]):
            starts[row * columns + spans[k, 0] + 1 : row * columns + spans[k, 2] + 1] += 1
    starts = np.cumsum(starts)
    ends = starts[:-1].copy()
    items = np.empty(starts[-1], np.int64)
    for k in range(n):
        for row in range(spans[k, 1], spans[k, 3]):
            for tile in range(row * columns + spans[k, 0], row * columns + spans[k, 2]):
                items[ends[tile]] = order[k]
                ends[tile] += 1
    return starts, items


@kernel
def _cells(low: Any, high: Any, corner: Any, n: Any) -> Any:
    """Shadow map cells of an interval, first and last + 1, clipped to the map."""
    return max(0, int((low - corner) / SHADE_STEP_M)), min(
        n, int((high - corner) / SHADE_STEP_M) + 1
    )


@kernel
def _reach(centre: Any, towards_sun: Any, radius: Any) -> Any:
    """Extent of a part's shadow along an axis."""
    return centre - max(towards_sun, 0.0) - radius, centre - min(towards_sun, 0.0) + radius


@kernel
def cast_shadows(stage: Any, sun: Any) -> Any:
    """Casts shadows: marks the ground cells whose ray towards the sun meets a part.

    Each part is tried on the cells that its ball may darken.
    """
    prims = stage.prims
    centre = stage.centre
    corner = stage.corner
    shadow = stage.shadow
    for i in range(len(centre)):
        hx = prims.half_m[i, 0]
        hy = prims.half_m[i, 1]
        hz = prims.half_m[i, 2]
        radius = math.sqrt(hx * hx + hy * hy + hz * hz)
        high = (centre[i, 2] + hz) / sun[2]
        x0, x1 = _reach(centre[i, 0], sun[0] * high, radius)
        column0, column1 = _cells(x0, x1, corner[0], len(shadow))
        if column0 >= column1:
            continue
        lowest = math.inf
        for column in range(column0, column1):
            lowest = min(lowest, stage.high_m[column])
        high = (centre[i, 2] + hz - lowest) / sun[2]
        x0, x1 = _reach(centre[i, 0], sun[0] * high, radius)
        y0, y1 = _reach(centre[i, 1], sun[1] * high, radius)
        dx, dy, dz = to_local(prims.axes, i, sun[0], sun[1], sun[2])
        row0, row1 = _cells(y0, y1, corner[1], len(shadow))
        column0, column1 = _cells(x0, x1, corner[0], len(shadow))
        for row in range(row0, row1):
            for column in range(column0, column1):
                if not shadow[row, column]:
                    px = corner[0] + (column + 0.5) * SHADE_STEP_M - centre[i, 0]
                    py = corner[1] + (row + 0.5) * SHADE_STEP_M - centre[i, 1]
                    pz = 0.05 + stage.high_m[column] - centre[i, 2]
                    ox, oy, oz = to_local(prims.axes, i, px, py, pz)
                    shadow[row, column] = hit_part(prims, i, ox, oy, oz, dx, dy, dz) < math.inf


@kernel
def _sunlit(stage: Any, x: Any, y: Any) -> Any:
    """Share of sunlight at a place of the ground, interpolated between shadow map cells."""
    n = len(stage.shadow)
    shadow = stage.shadow
    u = (x - stage.corner[0]) / SHADE_STEP_M - 0.5
    v = (y - stage.corner[1]) / SHADE_STEP_M - 0.5
    i = math.floor(u)
    j = math.floor(v)
    if i < 0 or j < 0 or i > n - 2 or j > n - 2:
        return 1.0
    u = u - i
    v = v - j
    low = shadow[j, i] * (1 - u) + shadow[j, i + 1] * u
    return 1.0 - low * (1 - v) - (shadow[j + 1, i] * (1 - u) + shadow[j + 1, i + 1] * u) * v


@kernel
def _nearest(stage: Any, near: Any, items: Any, origin: Any, dx: Any, dy: Any, dz: Any) -> Any:
    """First hit of a camera ray: distance, part, ground label, whether it is a kerb's face.

    The distance is inf for sky, the part -1 for ground and sky.
    """
    prims = stage.prims
    centre = stage.centre
    best, label, kerb = hit_ground(stage.ground, origin[0], origin[1], origin[2], dx, dy, dz)
    part = -1
    for i in items:
        if near[i] > best:
            break
        x, y, z = to_local(
            prims.axes,
            i,
            origin[0] - centre[i, 0],
            origin[1] - centre[i, 1],
            origin[2] - centre[i, 2],
        )
        u, v, w = to_local(prims.axes, i, dx, dy, dz)
        t = hit_part(prims, i, x, y, z, u, v, w)
        if t < best:
            best = t
            part = i
    return best, part, label, kerb


@kernel
def _part_light(stage: Any, light: Any, i: Any, x: Any, y: Any, z: Any) -> Any:
    """Shading of part i at a place of the street frame under sun and sky (colour)."""
    prims = stage.prims
    centre = stage.centre
    lx, ly, lz = to_local(prims.axes, i, x - centre[i, 0], y - centre[i, 1], z - centre[i, 2])
    nx, ny, nz, face = normal(prims, i, lx, ly, lz)
    r, g, b = part_colour(prims, i, lx, ly, lz, face)
    sx, sy, sz = to_local(prims.axes, i, light.sun[0], light.sun[1], light.sun[2])
    up = prims.axes[i, 2, 0] * nx + prims.axes[i, 2, 1] * ny + prims.axes[i, 2, 2] * nz
    gain = light.ambient * (0.78 + 0.22 * up) + light.direct * max(0.0, nx * sx + ny * sy + nz * sz)
    return r * gain, g * gain, b * gain


@kernel
def _ground_light(
    stage: Any, light: Any, label: Any, kerb: Any, x: Any, y: Any, distance: Any
) -> Any:
    """Shading of the ground at a place of the street frame under sun and sky (colour)."""
    r, g, b = ground_colour(stage.ground, label, x, y, distance)
    gain = light.ambient * (0.7 if kerb else 1.0)
    if not kerb:
        slope = slope_at(stage.ground, x)
        facing = max(0.0, light.sun[2] - slope * light.sun[0]) / math.sqrt(1.0 + slope * slope)
        gain += light.direct * facing * _sunlit(stage, x, y)
    return r * gain, g * gain, b * gain


@kernel
def _byte(value: Any) -> Any:
    return int(min(max(255.0 * value, 0.0), 255.0))


@kernel
def cast_pixels(
    stage: Any,
    light: Any,
    eye: Any,
    lists: Any,
    grain: Any,
    colour: Any,
    label: Any,
    instance: Any,
    depth: Any,
) -> Any:
    """Renders a camera image by ray casting, tile by tile (see render.View)."""
    h, w = label.shape
    columns = (w + TILE_PX - 1) // TILE_PX
    turned = eye.turned
    K = eye.K
    o = eye.origin
    for tile in range(len(lists.starts) - 1):
        items = lists.items[lists.starts[tile] : lists.starts[tile + 1]]
        row0 = tile // columns * TILE_PX
        column0 = tile % columns * TILE_PX
        for row in range(row0, min(row0 + TILE_PX, h)):
            for column in range(column0, min(column0 + TILE_PX, w)):
                x = (column + 0.5 - K[0, 2]) / K[0, 0]
                y = (row + 0.5 - K[1, 2]) / K[1, 1]
                scale = 1.0 / math.sqrt(x * x + y * y + 1.0)
                dx = scale * (turned[0, 0] * x + turned[0, 1] * y + turned[0, 2])
                dy = scale * (turned[1, 0] * x + turned[1, 1] * y + turned[1, 2])
                dz = scale * (turned[2, 0] * x + turned[2, 1] * y + turned[2, 2])
                t, part, surface, kerb = _nearest(stage, lists.near, items, o, dx, dy, dz)
                depth[row, column] = t * scale
                label[row, column] = stage.prims.label[part] if part >= 0 else surface
                instance[row, column] = stage.prims.instance[part] if part >= 0 else -1
                if t == math.inf:
                    r, g, b = sky_colour(light, dx, dy, dz)
                    clear = 1.0
                else:
                    clear = math.exp(-light.haze_per_m * t)
                    if part >= 0:
                        r, g, b = _part_light(
                            stage, light, part, o[0] + t * dx, o[1] + t * dy, o[2] + t * dz
                        )
                    else:
                        r, g, b = _ground_light(
                            stage, light, surface, kerb, o[0] + t * dx, o[1] + t * dy, t
                        )
                far = light.horizon
                noise = grain[row, column]
                colour[row, column, 0] = _byte(
                    (far[0] + clear * (r - far[0])) * light.tint[0] + noise
                )
                colour[row, column, 1] = _byte(
                    (far[1] + clear * (g - far[1])) * light.tint[1] + noise
                )
                colour[row, column, 2] = _byte(
                    (far[2] + clear * (b - far[2])) * light.tint[2] + noise
                )

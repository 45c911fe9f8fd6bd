"""The loops over all rays: a camera's pixels with their light and shadows, and the LiDAR's columns."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from numba import njit

from pipeline.demo.ground import NO_PAINT, OTHER_FLAT, SIDEWALK, TERRAIN, Ground
from pipeline.demo.paint import ground_colour, part_colour, sky_colour
from pipeline.demo.parts import Primitives
from pipeline.demo.rays import bound_m, hit_ground, hit_part, kernel, normal, to_local

_jit = njit(nogil=True, cache=True, error_model="numpy")
TILE_PX = 16
SHADE_STEP_M = 0.25
BINS = 128
RANGE_M = 80.0
EGO = 31
_NEAR_M = 0.1


class Eye(NamedTuple):
    """Where a camera is in the street frame: origin [m], rotation street_from_cam, intrinsics [px]."""

    origin: Float[np.ndarray, "3"]
    turned: Float[np.ndarray, "3 3"]
    K: Float[np.ndarray, "3 3"]


class Stage(NamedTuple):
    """The world at one moment: parts with their centres [m], ground, and the ground cells that the sun does not reach.

    Cell (row, column) of `shadow` is SHADE_STEP_M wide and begins at `corner` + (column, row) * SHADE_STEP_M.
    """

    prims: Primitives
    centre: Float[np.ndarray, "n 3"]
    ground: Ground
    shadow: Bool[np.ndarray, "s s"]
    corner: Float[np.ndarray, "2"]


class Lists(NamedTuple):
    """Parts to try, near to far, for each tile or azimuth bin k: items[starts[k]:starts[k + 1]]; `near` is each part's
    least distance [m]."""

    starts: Int64[np.ndarray, "k"]
    items: Int64[np.ndarray, "m"]
    near: Float[np.ndarray, "n"]


# --- cameras -----------------------------------------------------------------------------------------------------------


@_jit
def near_to_far(prims: Any, centre: Any, origin: Any) -> Any:
    """Parts by growing distance of their boxes from a point, and that distance for each part [m]."""
    near = np.empty(len(centre))
    for i in range(len(centre)):
        x, y, z = to_local(prims.axes, i, origin[0] - centre[i, 0], origin[1] - centre[i, 1], origin[2] - centre[i, 2])
        near[i] = bound_m(prims, i, x, y, z)
    return np.argsort(near), near


@kernel
def _corners(prims: Any, centre: Any, i: Any, eye: Any, out: Any) -> Any:
    """The eight corners of part i's box in the camera's frame [m]."""
    for c in range(8):
        sx = (2.0 * (c & 1) - 1.0) * prims.half_m[i, 0]
        sy = (2.0 * ((c >> 1) & 1) - 1.0) * prims.half_m[i, 1]
        sz = (2.0 * (c >> 2) - 1.0) * prims.half_m[i, 2]
        x, y, z = centre[i, 0] - eye.origin[0], centre[i, 1] - eye.origin[1], centre[i, 2] - eye.origin[2]
        x += sx * prims.axes[i, 0, 0] + sy * prims.axes[i, 0, 1] + sz * prims.axes[i, 0, 2]
        y += sx * prims.axes[i, 1, 0] + sy * prims.axes[i, 1, 1] + sz * prims.axes[i, 1, 2]
        z += sx * prims.axes[i, 2, 0] + sy * prims.axes[i, 2, 1] + sz * prims.axes[i, 2, 2]
        for k in range(3):
            out[c, k] = eye.turned[0, k] * x + eye.turned[1, k] * y + eye.turned[2, k] * z


@kernel
def _image_box(corners: Any, K: Any) -> Any:
    """Pixel rectangle (u0, v0, u1, v1) that holds a box, cut at the near plane; empty (u1 < u0) if behind it."""
    u0, v0, u1, v1 = math.inf, math.inf, -math.inf, -math.inf
    for c in range(8):
        for axis in range(4):  # axis 3: the corner itself; else where its edge along the axis meets the near plane
            d = c if axis == 3 else c ^ (1 << axis)
            z, other = corners[c, 2], corners[d, 2]
            if (axis == 3 and z < _NEAR_M) or (axis < 3 and not (z < _NEAR_M <= other)):
                continue
            share = 0.0 if axis == 3 else (_NEAR_M - z) / (other - z)
            x = corners[c, 0] + share * (corners[d, 0] - corners[c, 0])
            y = corners[c, 1] + share * (corners[d, 1] - corners[c, 1])
            z = z + share * (other - z)
            u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
            u0, v0, u1, v1 = min(u0, u), min(v0, v), max(u1, u), max(v1, v)
    return u0, v0, u1, v1


@_jit
def fill_tiles(prims: Any, centre: Any, order: Any, eye: Any, h: Any, w: Any) -> Any:
    """Starts and items of the parts that may show in each tile of an image (see Lists)."""
    n, rows, columns = len(order), (h + TILE_PX - 1) // TILE_PX, (w + TILE_PX - 1) // TILE_PX
    spans, corners = np.zeros((n, 4), np.int64), np.empty((8, 3))
    starts = np.zeros(rows * columns + 1, np.int64)
    for k in range(n):
        _corners(prims, centre, order[k], eye, corners)
        u0, v0, u1, v1 = _image_box(corners, eye.K)
        if u1 < 0 or v1 < 0 or u0 > w or v0 > h or u1 < u0:
            continue
        spans[k, 0], spans[k, 1] = int(max(u0, 0.0)) // TILE_PX, int(max(v0, 0.0)) // TILE_PX
        spans[k, 2], spans[k, 3] = int(min(u1, w - 1.0)) // TILE_PX + 1, int(min(v1, h - 1.0)) // TILE_PX + 1
        for row in range(spans[k, 1], spans[k, 3]):
            starts[row * columns + spans[k, 0] + 1 : row * columns + spans[k, 2] + 1] += 1
    starts = np.cumsum(starts)
    ends, items = starts[:-1].copy(), np.empty(starts[-1], np.int64)
    for k in range(n):
        for row in range(spans[k, 1], spans[k, 3]):
            for tile in range(row * columns + spans[k, 0], row * columns + spans[k, 2]):
                items[ends[tile]] = order[k]
                ends[tile] += 1
    return starts, items


@kernel
def _cells(low: Any, high: Any, corner: Any, n: Any) -> Any:
    """First and last + 1 shadow cell of an interval, cut to the map."""
    return max(0, int((low - corner) / SHADE_STEP_M)), min(n, int((high - corner) / SHADE_STEP_M) + 1)


@kernel
def cast_shadows(stage: Any, sun: Any) -> Any:
    """Mark cells whose ray towards the sun meets a part; each part is tried on the cells that its ball may darken."""
    prims, centre, corner, shadow = stage.prims, stage.centre, stage.corner, stage.shadow
    for i in range(len(centre)):
        hx, hy, hz = prims.half_m[i, 0], prims.half_m[i, 1], prims.half_m[i, 2]
        radius, high = math.sqrt(hx * hx + hy * hy + hz * hz), (centre[i, 2] + hz) / sun[2]
        ax, ay = sun[0] * high, sun[1] * high
        x0, x1 = centre[i, 0] - max(ax, 0.0) - radius, centre[i, 0] - min(ax, 0.0) + radius
        y0, y1 = centre[i, 1] - max(ay, 0.0) - radius, centre[i, 1] - min(ay, 0.0) + radius
        dx, dy, dz = to_local(prims.axes, i, sun[0], sun[1], sun[2])
        row0, row1 = _cells(y0, y1, corner[1], len(shadow))
        column0, column1 = _cells(x0, x1, corner[0], len(shadow))
        for row in range(row0, row1):
            for column in range(column0, column1):
                if not shadow[row, column]:
                    px = corner[0] + (column + 0.5) * SHADE_STEP_M - centre[i, 0]
                    py = corner[1] + (row + 0.5) * SHADE_STEP_M - centre[i, 1]
                    ox, oy, oz = to_local(prims.axes, i, px, py, 0.05 - centre[i, 2])
                    shadow[row, column] = hit_part(prims, i, ox, oy, oz, dx, dy, dz) < math.inf


@kernel
def _sunlit(stage: Any, x: Any, y: Any) -> Any:
    """Share of sunlight at a place of the ground, smoothed between cells."""
    n, shadow = len(stage.shadow), stage.shadow
    u, v = (x - stage.corner[0]) / SHADE_STEP_M - 0.5, (y - stage.corner[1]) / SHADE_STEP_M - 0.5
    i, j = math.floor(u), math.floor(v)
    if i < 0 or j < 0 or i > n - 2 or j > n - 2:
        return 1.0
    u, v = u - i, v - j
    low = shadow[j, i] * (1 - u) + shadow[j, i + 1] * u
    return 1.0 - low * (1 - v) - (shadow[j + 1, i] * (1 - u) + shadow[j + 1, i + 1] * u) * v


@kernel
def _nearest(stage: Any, near: Any, items: Any, origin: Any, dx: Any, dy: Any, dz: Any) -> Any:
    """First thing on a ray: distance (inf: sky), part (-1: ground or sky), ground label, kerb face or not."""
    prims, centre = stage.prims, stage.centre
    best, label, kerb = hit_ground(stage.ground, origin[0], origin[1], origin[2], dx, dy, dz)
    part = -1
    for i in items:
        if near[i] > best:
            break
        x, y, z = to_local(prims.axes, i, origin[0] - centre[i, 0], origin[1] - centre[i, 1], origin[2] - centre[i, 2])
        u, v, w = to_local(prims.axes, i, dx, dy, dz)
        t = hit_part(prims, i, x, y, z, u, v, w)
        if t < best:
            best, part = t, i
    return best, part, label, kerb


@kernel
def _part_light(stage: Any, light: Any, i: Any, x: Any, y: Any, z: Any) -> Any:
    """Colour of part i at a place of the street frame under sun and sky."""
    prims, centre = stage.prims, stage.centre
    lx, ly, lz = to_local(prims.axes, i, x - centre[i, 0], y - centre[i, 1], z - centre[i, 2])
    nx, ny, nz, face = normal(prims, i, lx, ly, lz)
    r, g, b = part_colour(prims, i, lx, ly, lz, face)
    sx, sy, sz = to_local(prims.axes, i, light.sun[0], light.sun[1], light.sun[2])
    up = prims.axes[i, 2, 0] * nx + prims.axes[i, 2, 1] * ny + prims.axes[i, 2, 2] * nz
    gain = light.ambient * (0.78 + 0.22 * up) + light.direct * max(0.0, nx * sx + ny * sy + nz * sz)
    return r * gain, g * gain, b * gain


@kernel
def _ground_light(stage: Any, light: Any, label: Any, kerb: Any, x: Any, y: Any, distance: Any) -> Any:
    """Colour of the ground at a place of the street frame under sun and sky."""
    r, g, b = ground_colour(stage.ground, label, x, y, distance)
    gain = light.ambient * (0.7 if kerb else 1.0)
    if not kerb:
        gain += light.direct * light.sun[2] * _sunlit(stage, x, y)
    return r * gain, g * gain, b * gain


@kernel
def _byte(value: Any) -> Any:
    return int(min(max(255.0 * value, 0.0), 255.0))


@kernel
def cast_pixels(
    stage: Any, light: Any, eye: Any, lists: Any, grain: Any, colour: Any, label: Any, instance: Any, depth: Any
) -> Any:
    """Fill a picture's images tile by tile (see render.View)."""
    h, w = label.shape
    columns, turned, K, o = (w + TILE_PX - 1) // TILE_PX, eye.turned, eye.K, eye.origin
    for tile in range(len(lists.starts) - 1):
        items = lists.items[lists.starts[tile] : lists.starts[tile + 1]]
        row0, column0 = tile // columns * TILE_PX, tile % columns * TILE_PX
        for row in range(row0, min(row0 + TILE_PX, h)):
            for column in range(column0, min(column0 + TILE_PX, w)):
                x, y = (column + 0.5 - K[0, 2]) / K[0, 0], (row + 0.5 - K[1, 2]) / K[1, 1]
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
                        r, g, b = _part_light(stage, light, part, o[0] + t * dx, o[1] + t * dy, o[2] + t * dz)
                    else:
                        r, g, b = _ground_light(stage, light, surface, kerb, o[0] + t * dx, o[1] + t * dy, t)
                far, noise = light.horizon, grain[row, column]
                colour[row, column, 0] = _byte((far[0] + clear * (r - far[0])) * light.tint[0] + noise)
                colour[row, column, 1] = _byte((far[1] + clear * (g - far[1])) * light.tint[1] + noise)
                colour[row, column, 2] = _byte((far[2] + clear * (b - far[2])) * light.tint[2] + noise)


# --- LiDAR -------------------------------------------------------------------------------------------------------------


@kernel
def cast_car(car: Any, at: Any, rays: Any, out: Any) -> Any:
    """Distance to the car itself (parts in its own frame) from `at` along each ray (columns, rings, 3), inf if none [m]."""
    for c in range(rays.shape[0]):
        for r in range(rays.shape[1]):
            out[c, r] = math.inf
            for i in range(len(car.kind)):
                x, y, z = at[0] - car.centre_m[i, 0], at[1] - car.centre_m[i, 1], at[2] - car.centre_m[i, 2]
                out[c, r] = min(out[c, r], hit_part(car, i, x, y, z, rays[c, r, 0], rays[c, r, 1], rays[c, r, 2]))


@_jit
def fill_bins(prims: Any, origin: Any, time_s: Any, reach_m: Any) -> Any:
    """Starts, items and near of the parts that a ray of each of BINS azimuths of the street frame may meet (see Lists).

    `reach_m` is how far car and parts may move against each other during the turn that ends at `time_s`.
    """
    n = len(prims.kind)
    near, spans = np.empty(n), np.zeros((n, 2), np.int64)
    starts = np.zeros(BINS + 1, np.int64)
    for i in range(n):
        cx = prims.centre_m[i, 0] + prims.velocity_mps[i, 0] * time_s - origin[0]
        cy = prims.centre_m[i, 1] + prims.velocity_mps[i, 1] * time_s - origin[1]
        x, y, z = to_local(prims.axes, i, -cx, -cy, origin[2] - prims.centre_m[i, 2])
        near[i] = max(bound_m(prims, i, x, y, z) - reach_m, 0.0)
        if near[i] > RANGE_M:
            continue
        hx, hy, hz = prims.half_m[i, 0], prims.half_m[i, 1], prims.half_m[i, 2]
        radius, distance = math.sqrt(hx * hx + hy * hy + hz * hz) + reach_m, math.sqrt(cx * cx + cy * cy)
        wide = math.pi if distance <= radius else math.asin(radius / distance) + 0.02
        middle = math.atan2(cy, cx) + 4 * math.pi
        spans[i, 0] = math.floor((middle - wide) / (2 * math.pi) * BINS)
        spans[i, 1] = min(math.floor((middle + wide) / (2 * math.pi) * BINS), spans[i, 0] + BINS - 1) + 1
        for b in range(spans[i, 0], spans[i, 1]):
            starts[b % BINS + 1] += 1
    starts = np.cumsum(starts)
    ends, items = starts[:-1].copy(), np.empty(starts[-1], np.int64)
    for i in np.argsort(near):
        for b in range(spans[i, 0], spans[i, 1]):
            items[ends[b % BINS]] = i
            ends[b % BINS] += 1
    return starts, items, near


class Turn(NamedTuple):
    """Rays of one turn: per column its origin [m] and rotation street_from_lidar and firing time [s]; per ray its
    direction in the LiDAR frame and the distance to the car itself [m]."""

    origins: Float[np.ndarray, "c 3"]
    turned: Float[np.ndarray, "c 3 3"]
    fired_s: Float[np.ndarray, "c"]
    rays: Float[np.ndarray, "c r 3"]
    ego_m: Float[np.ndarray, "c r"]


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
    """First hits of every column at its firing time (see spin.Hits); `local` (parts, 3) is scratch room."""
    for c in range(turn.rays.shape[0]):
        t = turn.turned[c]
        ox, oy, oz, fired_s = turn.origins[c, 0], turn.origins[c, 1], turn.origins[c, 2], turn.fired_s[c]
        u, v, w = turn.rays[c, 0, 0], turn.rays[c, 0, 1], 0.0
        ahead = math.atan2(t[1, 0] * u + t[1, 1] * v, t[0, 0] * u + t[0, 1] * v) + 4 * math.pi
        b = math.floor(ahead / (2 * math.pi) * BINS) % BINS
        items = lists.items[lists.starts[b] : lists.starts[b + 1]]
        for i in items:
            x = ox - prims.centre_m[i, 0] - prims.velocity_mps[i, 0] * fired_s
            y = oy - prims.centre_m[i, 1] - prims.velocity_mps[i, 1] * fired_s
            local[i, 0], local[i, 1], local[i, 2] = to_local(prims.axes, i, x, y, oz - prims.centre_m[i, 2])
        for r in range(turn.rays.shape[1]):
            u, v, w = turn.rays[c, r, 0], turn.rays[c, r, 1], turn.rays[c, r, 2]
            dx = t[0, 0] * u + t[0, 1] * v + t[0, 2] * w
            dy = t[1, 0] * u + t[1, 1] * v + t[1, 2] * w
            dz = t[2, 0] * u + t[2, 1] * v + t[2, 2] * w
            hit = _one_ray(prims, ground, ox, oy, oz, dx, dy, dz, local, items, lists.near, turn.ego_m[c, r])
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
    """Distance, part, label, cosine of incidence and reflectance of the first thing on a ray."""
    best, surface, kerb = hit_ground(ground, ox, oy, oz, dx, dy, dz)
    part, lx, ly, lz = -1, 0.0, 0.0, 0.0
    for i in items:
        if near[i] > best or near[i] > ego_m:
            break
        u, v, w = to_local(prims.axes, i, dx, dy, dz)
        t = hit_part(prims, i, local[i, 0], local[i, 1], local[i, 2], u, v, w)
        if t < best:
            best, part, lx, ly, lz = t, i, u, v, w
    if ego_m < best:
        return ego_m, -1, EGO, 0.5, 0.2
    if best > RANGE_M:
        return math.inf, -1, 0, 0.0, 0.0
    if part < 0:
        return best, -1, surface, 0.7 if kerb else -dz, _ground_reflect(ground, surface, ox + best * dx, oy + best * dy)
    x, y, z = local[part, 0] + best * lx, local[part, 1] + best * ly, local[part, 2] + best * lz
    nx, ny, nz, _ = normal(prims, part, x, y, z)
    return best, part, prims.label[part], abs(nx * lx + ny * ly + nz * lz), prims.reflect[part]


@kernel
def _ground_reflect(ground: Any, surface: Any, x: Any, y: Any) -> Any:
    """Reflectance of the ground: asphalt dark, paint bright, grass and concrete between."""
    if surface == TERRAIN:
        return 0.30
    if surface == SIDEWALK:
        return 0.22
    if surface == OTHER_FLAT:
        return 0.16
    row, column = cell_of(ground, x, y)
    return 0.09 if ground.paint[row, column] == NO_PAINT else 0.55


@_jit
def count_in_boxes(xyz: Any, centre: Any, half: Any, yaw: Any) -> Any:
    """How many points lie in each upright box: its centre, half sides and yaw in the points' frame [m, rad]."""
    counts = np.zeros(len(centre), np.int64)
    for i in range(len(centre)):
        c, s, reach = math.cos(yaw[i]), math.sin(yaw[i]), half[i, 0] + half[i, 1]
        for j in range(len(xyz)):
            x, y = xyz[j, 0] - centre[i, 0], xyz[j, 1] - centre[i, 1]
            if abs(x) <= reach and abs(y) <= reach and abs(xyz[j, 2] - centre[i, 2]) <= half[i, 2]:
                counts[i] += abs(c * x + s * y) <= half[i, 0] and abs(c * y - s * x) <= half[i, 1]
    return counts

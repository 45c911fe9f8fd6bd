"""Compiled kernels: sweep merging, deskew, camera projection, z-buffer, voxel hashing, pooling.

Flat arrays in, flat arrays out, no GIL, no Python objects.

The tests hold all of it against readable NumPy: kernel by kernel (``tests/projection/twins.py``) or
through its caller.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clipsweep.projection.jit import jit

COORD_BITS = 19
"""Bits of one cell coordinate in a packed key: cells -262144..262143, 26 km either way at 0.1 m."""

BATCH_BITS = 7
"""Bits of the batch index in a packed key."""

_HALF = 1 << (COORD_BITS - 1)
_MASK = (1 << COORD_BITS) - 1
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: Knuth's multiplicative hash
_BLOCK = 512  # points: their three coordinates and results fit the innermost cache

# --- sweeps ---------------------------------------------------------------------------------------


@jit
def take_sweep(
    raw: Any,
    matrix: Any,
    box: float,
    far: float,
    full: float,
    start: int,
    xyz: Any,
    intensity: Any,
    source: Any,
) -> Any:
    """Reads and transforms a sweep's points: writes the usable ones from row ``start`` on.

    Answers the new end and the number of bad rows.

    ``raw (n,c) f32`` holds x, y, z, intensity, ...; ``matrix (3,4) f32 = [R|t]`` moves the points;
    intensity ``full`` becomes 1. Rows with ``|x|`` and ``|y|`` under ``box`` are left out, and so
    are bad ones: not finite, or a coordinate beyond ``far``. Every row is written, then kept or
    overwritten: a branch would be mispredicted.
    """
    m00 = matrix[0, 0]
    m01 = matrix[0, 1]
    m02 = matrix[0, 2]
    m03 = matrix[0, 3]
    m10 = matrix[1, 0]
    m11 = matrix[1, 1]
    m12 = matrix[1, 2]
    m13 = matrix[1, 3]
    m20 = matrix[2, 0]
    m21 = matrix[2, 1]
    m22 = matrix[2, 2]
    m23 = matrix[2, 3]
    # unsigned: no test for indices from the end
    end = np.uint64(start)
    bad = 0
    scale = np.float32(1.0 / full)
    none = np.float32(0)
    one = np.float32(1)
    inner = np.float32(box)
    outer = np.float32(far)
    for i in range(raw.shape[0]):
        x = raw[i, 0]
        y = raw[i, 1]
        z = raw[i, 2]
        strength = raw[i, 3]
        good = (abs(x) <= outer) & (abs(y) <= outer) & (abs(z) <= outer) & (abs(strength) < np.inf)
        own = (abs(x) < inner) & (abs(y) < inner)
        xyz[end, 0] = m00 * x + m01 * y + m02 * z + m03
        xyz[end, 1] = m10 * x + m11 * y + m12 * z + m13
        xyz[end, 2] = m20 * x + m21 * y + m22 * z + m23
        intensity[end] = min(max(strength * scale, none), one)
        source[end] = i
        end += np.uint64(good & (not own))
        bad += not good
    return np.int64(end), bad


@jit
def deskew(xyz: Any, time_s: Any, turn: Any, speed: Any, out: Any) -> None:
    """Deskew: motion compensation within a sweep, ``R(turn t) p + speed t`` of each point.

    ``xyz (n,3) f32`` are the points p, ``time_s (n,) f32`` their times t, ``turn (3,) f64`` is axis
    times angle a second, ``speed (3,) f64``. By Rodrigues' formula in float64.
    """
    rate = np.sqrt(turn[0] ** 2 + turn[1] ** 2 + turn[2] ** 2)
    ax = turn[0] / max(rate, 1e-12)
    ay = turn[1] / max(rate, 1e-12)
    az = turn[2] / max(rate, 1e-12)
    for i in range(xyz.shape[0]):
        t = np.float64(time_s[i])
        x = np.float64(xyz[i, 0])
        y = np.float64(xyz[i, 1])
        z = np.float64(xyz[i, 2])
        c = np.cos(rate * t)
        s = np.sin(rate * t)
        along = (ax * x + ay * y + az * z) * (1.0 - c)
        out[i, 0] = c * x + s * (ay * z - az * y) + along * ax + speed[0] * t
        out[i, 1] = c * y + s * (az * x - ax * z) + along * ay + speed[1] * t
        out[i, 2] = c * z + s * (ax * y - ay * x) + along * az + speed[2] * t


# --- projection -----------------------------------------------------------------------------------


@jit
def project(
    xyz: Any,
    matrix: Any,
    size_wh: Any,
    min_depth: float,
    border: float,
    point: Any,
    camera: Any,
    uv: Any,
    depth: Any,
) -> int:
    """Projects a point cloud into all cameras: writes point-pixel pairs.

    ``xyz (n,3) f32`` is the cloud, ``matrix (k,3,4) f32`` the cameras' ``K [R|t]``. Answers how
    many pairs there are.

    Works through blocks of points: first a loop without branches, which the compiler turns into
    vector code, then the compaction of those blocks that have pairs. Answers -1 when the pairs do
    not fit the room in ``point``.
    """
    n = xyz.shape[0]
    count = 0
    x = np.empty(n, np.float32)
    y = np.empty(n, np.float32)
    z = np.empty(n, np.float32)
    for i in range(n):
        x[i] = xyz[i, 0]
        y[i] = xyz[i, 1]
        z[i] = xyz[i, 2]
    us = np.empty(_BLOCK, np.float32)
    vs = np.empty(_BLOCK, np.float32)
    ds = np.empty(_BLOCK, np.float32)
    seen = np.empty(_BLOCK, np.bool_)
    low = np.float32(border)
    nearest = np.float32(min_depth)
    for c in range(matrix.shape[0]):
        m00 = matrix[c, 0, 0]
        m01 = matrix[c, 0, 1]
        m02 = matrix[c, 0, 2]
        m03 = matrix[c, 0, 3]
        m10 = matrix[c, 1, 0]
        m11 = matrix[c, 1, 1]
        m12 = matrix[c, 1, 2]
        m13 = matrix[c, 1, 3]
        m20 = matrix[c, 2, 0]
        m21 = matrix[c, 2, 1]
        m22 = matrix[c, 2, 2]
        m23 = matrix[c, 2, 3]
        high_u = np.float32(size_wh[c, 0] - border)
        high_v = np.float32(size_wh[c, 1] - border)
        for start in range(0, n, _BLOCK):
            size = min(_BLOCK, n - start)
            hits = 0
            bx = x[start : start + size]
            by = y[start : start + size]
            bz = z[start : start + size]
            for j in range(size):
                d = m20 * bx[j] + m21 * by[j] + m22 * bz[j] + m23
                inverse = np.float32(1.0) / d
                u = (m00 * bx[j] + m01 * by[j] + m02 * bz[j] + m03) * inverse
                v = (m10 * bx[j] + m11 * by[j] + m12 * bz[j] + m13) * inverse
                us[j] = u
                vs[j] = v
                ds[j] = d
                # `and` would branch, and the loop would stay scalar
                seen[j] = (d > nearest) & (u > low) & (u < high_u) & (v > low) & (v < high_v)
                hits += seen[j]
            if hits > len(point) - count:
                return -1
            for j in range(size if hits > 0 else 0):
                if seen[j]:
                    point[count] = start + j
                    camera[count] = c
                    uv[count, 0] = us[j]
                    uv[count, 1] = vs[j]
                    depth[count] = ds[j]
                    count += 1
    return count


@jit
def pixel_rows(camera: Any, uv: Any, scale: Any, start: Any, width: Any, rows: Any) -> None:
    """Grid pixel of each point-pixel pair: writes its row.

    ``scale (k,2) f32`` is grid over image size, height and width.
    """
    for i in range(len(camera)):
        c = camera[i]
        rows[i] = (
            start[c]
            + np.int64(uv[i, 1] * scale[c, 0]) * width[c]
            + np.int64(uv[i, 0] * scale[c, 1])
        )


@jit
def visible(
    camera: Any, uv: Any, depth: Any, grid_hw: Any, cell_px: Any, relative: float,
    absolute: float, dilate_cells: int,
    keep: Any,
) -> None:  # fmt: skip
    """Z-buffer occlusion test: marks the pairs that no nearer pair of the same image hides.

    A pair hides what is deeper in its own image cell and in ``dilate_cells`` cells around it.
    ``grid_hw (k,2)`` is each image's number of cells, of ``cell_px (k,)`` pixels; ``keep (m,)
    bool`` is written.
    """
    height = 1
    width = 1
    for c in range(grid_hw.shape[0]):
        height = max(height, grid_hw[c, 0])
        width = max(width, grid_hw[c, 1])
    nearest = np.full((grid_hw.shape[0], height, width), np.inf, np.float32)
    scale = (1.0 / cell_px).astype(np.float32)
    lower_to_pairs(camera, uv, depth, scale, nearest)
    if dilate_cells > 0:
        spread_nearest(nearest, dilate_cells)
    for i in range(len(depth)):
        c = camera[i]
        row = int(uv[i, 1] * scale[c])
        column = int(uv[i, 0] * scale[c])
        keep[i] = depth[i] <= nearest[c, row, column] * (1.0 + relative) + absolute


@jit
def lower_to_pairs(camera: Any, uv: Any, depth: Any, scale: Any, nearest: Any) -> None:
    """Fills z-buffers ``nearest (k,h,w)``: the least depth of the pairs in each cell."""
    for i in range(len(depth)):
        c = camera[i]
        row = int(uv[i, 1] * scale[c])
        column = int(uv[i, 0] * scale[c])
        nearest[c, row, column] = min(nearest[c, row, column], depth[i])


@jit
def spread_nearest(nearest: Any, reach: int) -> None:
    """Minimum filter of z-buffers ``(k,h,w)``, in place, over windows of ``2 reach + 1`` cells.

    Along the rows, then along the columns: the minimum over a square is separable.
    """
    height = nearest.shape[1]
    own = nearest.copy()
    for c in range(nearest.shape[0]):
        for row in range(height):
            for step in range(1, min(reach, nearest.shape[2] - 1) + 1):
                lower_to(own[c, row, step:], nearest[c, row, :-step])
                lower_to(own[c, row, :-step], nearest[c, row, step:])
    own = nearest.copy()
    for c in range(nearest.shape[0]):
        for row in range(height):
            for other in range(max(0, row - reach), min(height, row + reach + 1)):
                lower_to(own[c, other], nearest[c, row])


@jit
def lower_to(other: Any, line: Any) -> None:
    """Elementwise minimum: lowers each element of ``line`` to that of ``other`` if this is less."""
    for i in range(len(line)):
        line[i] = min(line[i], other[i])


# --- grid -----------------------------------------------------------------------------------------


@jit
def pack(batch: Any, c0: Any, c1: Any, c2: Any) -> Any:
    """Packs batch index and voxel coordinates into one 64-bit key.

    Unique while each coordinate fits ``COORD_BITS`` and the batch ``BATCH_BITS``.
    """
    return np.uint64(
        (batch << (3 * COORD_BITS))
        | ((c0 + _HALF) << (2 * COORD_BITS))
        | ((c1 + _HALF) << COORD_BITS)
        | (c2 + _HALF)
    )


@jit
def cell_keys(xyz: Any, rotation: Any, translation: Any, size: float, keys: Any) -> bool:
    """Voxelizes points: writes the packed key of each after a rigid transform in float64.

    False when one lies out of range.
    """
    inside = True
    for i in range(xyz.shape[0]):
        c0 = 0
        c1 = 0
        c2 = 0
        x = np.float64(xyz[i, 0])
        y = np.float64(xyz[i, 1])
        z = np.float64(xyz[i, 2])
        f0 = np.floor(
            (rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] * z + translation[0]) / size
        )
        f1 = np.floor(
            (rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] * z + translation[1]) / size
        )
        f2 = np.floor(
            (rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] * z + translation[2]) / size
        )
        if abs(f0) < _HALF and abs(f1) < _HALF and abs(f2) < _HALF:  # False for NaN too
            c0 = int(f0)
            c1 = int(f1)
            c2 = int(f2)
        else:
            inside = False
        keys[i] = pack(0, c0, c1, c2)
    return inside


@jit
def pack_rows(coords: Any, keys: Any) -> bool:
    """Packs voxel coordinates: writes the key of each row of ``coords (v,4) i32``.

    Rows are (batch, c0, c1, c2). False when one is out of range.
    """
    inside = True
    for i in range(coords.shape[0]):
        b = coords[i, 0]
        c0 = coords[i, 1]
        c1 = coords[i, 2]
        c2 = coords[i, 3]
        # abs() of the least int32 is negative
        low = min(c0, min(c1, c2))
        high = max(c0, max(c1, c2))
        inside = (
            inside and low > 1 - _HALF and high < _HALF - 1 and b >= 0 and b < (1 << BATCH_BITS)
        )
        keys[i] = pack(np.int64(b), np.int64(c0), np.int64(c1), np.int64(c2))
    return inside


@jit
def unpack(keys: Any, coords: Any) -> None:
    """Unpacks voxel keys: writes ``coords (v,4) i32`` (batch, c0, c1, c2)."""
    for i in range(len(keys)):
        key = np.int64(keys[i])
        coords[i, 0] = (key >> (3 * COORD_BITS)) & ((1 << BATCH_BITS) - 1)
        coords[i, 1] = ((key >> (2 * COORD_BITS)) & _MASK) - _HALF
        coords[i, 2] = ((key >> COORD_BITS) & _MASK) - _HALF
        coords[i, 3] = (key & _MASK) - _HALF


@jit
def hash_slot(key: Any, table: Any) -> Any:
    """Hash function of a voxel key: first slot to try; the table's length is a power of two."""
    return np.int64((np.uint64(key) * _GOLDEN) >> np.uint64(32)) & (len(table) - 1)


@jit
def find_one(key: Any, keys: Any, table: Any) -> Any:
    """Hash lookup of one voxel key: its index among the distinct ``keys``, or -1."""
    slot = hash_slot(key, table)
    while table[slot] >= 0:
        if keys[table[slot]] == key:
            return table[slot]
        slot = (slot + 1) & (len(table) - 1)
    return -1


@jit
def distinct(keys: Any, table: Any, unique: Any, inverse: Any) -> int:
    """Fills a voxel hash table: writes distinct keys as first seen, and each key's index.

    ``table`` comes in all -1 and is longer than the keys. Answers the number of distinct keys.
    """
    count = 0
    for i in range(len(keys)):
        key = keys[i]
        slot = hash_slot(keys[i], table)
        while table[slot] >= 0 and unique[table[slot]] != key:
            slot = (slot + 1) & (len(table) - 1)
        if table[slot] < 0:
            table[slot] = count
            unique[count] = key
            count += 1
        inverse[i] = table[slot]
    return count


@jit
def find(wanted: Any, keys: Any, table: Any, index: Any) -> None:
    """Hash lookup of voxel keys: writes the index of each wanted key among ``keys``, or -1."""
    for i in range(len(wanted)):
        index[i] = find_one(wanted[i], keys, table)


# --- neighbour maps -------------------------------------------------------------------------------


@jit
def half_neighbours(keys: Any, table: Any, source: Any, target: Any, counts: Any) -> None:
    """Kernel map of a 3^3 convolution, by half: neighbours at the 13 offsets before the centre.

    They are those before (0, 0, 0) in lexicographic order; the other 13 are the same pairs seen
    from the other end. Writes rows ``source[k], target[k] (13,v) i32`` of cells with
    ``coords[source] = coords[target] + offset k`` and their number ``counts (13,)``; targets
    ascend.
    """
    for k in range(13):
        step = (
            (k // 9 - 1) * (1 << (2 * COORD_BITS))
            + (k // 3 % 3 - 1) * (1 << COORD_BITS)
            + (k % 3 - 1)
        )
        count = 0
        for i in range(len(keys)):
            found = find_one(np.uint64(np.int64(keys[i]) + step), keys, table)
            if found >= 0:
                source[k, count] = found
                target[k, count] = i
                count += 1
        counts[k] = count


@jit
def halve(coords: Any, parents: Any, octant: Any) -> None:
    """Downsampling by two: writes each cell's parent and its octant in it.

    ``parents (v,4) i32`` are cells of twice the size.
    """
    for i in range(coords.shape[0]):
        parents[i, 0] = coords[i, 0]
        part = 0
        for j in range(1, 4):
            parents[i, j] = coords[i, j] >> 1  # rounds down for negative numbers too
            part = 2 * part + (coords[i, j] & 1)
        octant[i] = part


@jit
def group_rows(group: Any, starts: Any, order: Any) -> None:
    """Counting sort: writes the rows of each group, ascending, and where each group starts.

    ``starts (groups + 1)`` ends with the number of rows.
    """
    starts[:] = 0
    for i in range(len(group)):
        starts[group[i] + 1] += 1
    for g in range(1, len(starts)):
        starts[g] += starts[g - 1]
    place = starts.copy()
    for i in range(len(group)):
        order[place[group[i]]] = i
        place[group[i]] += 1


@jit
def reduce_rows(values: Any, inverse: Any, mode: int, out: Any, count: Any) -> None:
    """Pools rows by cell: writes their first (mode 0), mean (1) or greatest (2) values.

    ``values (n,c) f32`` are the rows, ``inverse (n,)`` their cells.

    ``count (v,) i32`` comes in zero and goes out as the number of rows of each cell.
    """
    for i in range(values.shape[0]):
        v = inverse[i]
        if count[v] == 0:
            for j in range(values.shape[1]):
                out[v, j] = values[i, j]
        elif mode == 1:
            for j in range(values.shape[1]):
                out[v, j] += values[i, j]
        elif mode == 2:
            for j in range(values.shape[1]):
                out[v, j] = max(out[v, j], values[i, j])
        count[v] += 1
    if mode == 1:
        for v in range(out.shape[0]):
            for j in range(out.shape[1]):
                out[v, j] /= np.float32(count[v])


@jit
def add_rows(values: Any, inverse: Any, sign: int, sums: Any, counts: Any) -> None:
    """Adds rows to the sums and counts of their cells, or with sign -1 takes them out again.

    ``values (n,c) f32`` are the rows, ``inverse (n,)`` their cells, ``sums (v,c) f64``,
    ``counts (v,) i64``.
    """
    for i in range(values.shape[0]):
        v = inverse[i]
        counts[v] += sign
        for j in range(values.shape[1]):
            sums[v, j] += sign * np.float64(values[i, j])


@jit
def corners(xyz: Any, size: float, keys: Any, table: Any, cell: Any, weight: Any) -> None:
    """Trilinear interpolation: writes the eight cells around each point and their weights.

    ``cell (n,8) i32`` are those whose centres surround the point.

    Cells that are not in the index get cell 0 and weight 0; the weights of the others are scaled to
    sum to 1.
    """
    for i in range(xyz.shape[0]):
        x = np.float64(xyz[i, 0]) / size
        y = np.float64(xyz[i, 1]) / size
        z = np.float64(xyz[i, 2]) / size
        b0 = np.floor(x - 0.5)
        b1 = np.floor(y - 0.5)
        b2 = np.floor(z - 0.5)
        f0 = x - 0.5 - b0
        f1 = y - 0.5 - b1
        f2 = z - 0.5 - b2
        total = 0.0
        for k in range(8):
            o0 = k >> 2
            o1 = (k >> 1) & 1
            o2 = k & 1
            found = find_one(pack(0, int(b0) + o0, int(b1) + o1, int(b2) + o2), keys, table)
            share = (f0 if o0 else 1.0 - f0) * (f1 if o1 else 1.0 - f1) * (f2 if o2 else 1.0 - f2)
            cell[i, k] = max(found, 0)
            weight[i, k] = share if found >= 0 else 0.0
            total += share if found >= 0 else 0.0
        for k in range(8):
            weight[i, k] /= total

"""Every compiled kernel, and the Python that it is compiled from, against its NumPy twin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipsweep.projection import clusters_kernels, ground_kernels, kernels, votes_kernels
from clipsweep.projection.grid import index_coords
from tests.projection import twins

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(params=["compiled", "python"])
def run(request):
    """Gives the compiled kernel or the function that it was compiled from."""

    def call(kernel, *arguments):
        with np.errstate(all="ignore"):
            return (kernel if request.param == "compiled" else kernel.py_func)(*arguments)

    return call


def random_matrix(random):
    return np.concatenate(
        [np.linalg.qr(random.normal(size=(3, 3)))[0], random.normal(size=(3, 1))], axis=1
    )


def cloud(random, n, spread=20.0):
    return (random.normal(size=(n, 3)) * spread).astype(np.float32)


@pytest.mark.parametrize("n", [0, 1, 700])
def test_take_sweep(run, n):
    random = np.random.default_rng(n)
    raw = np.column_stack([cloud(random, n, 3.0), random.uniform(-10, 300, n), np.zeros(n)]).astype(
        np.float32
    )
    if n > 1:
        raw[3, 0] = np.nan
        raw[4, 1] = np.inf
        raw[5, 2] = 400
        raw[6, 3] = np.nan
    matrix = random_matrix(random).astype(np.float32)
    xyz = np.zeros((n, 3), np.float32)
    intensity = np.zeros(n, np.float32)
    source = np.zeros(n, np.int32)
    end, bad = run(kernels.take_sweep, raw, matrix, 1.0, 300.0, 255.0, 0, xyz, intensity, source)
    expected = twins.take_sweep(raw, matrix, 1.0, 300.0, 255.0)
    assert bad == expected.bad
    np.testing.assert_array_equal(source[:end], expected.source)
    np.testing.assert_allclose(xyz[:end], expected.xyz, atol=1e-5)
    np.testing.assert_allclose(intensity[:end], expected.intensity, atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 50])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_deskew(run, n, rate):
    random = np.random.default_rng(n)
    xyz = cloud(random, n)
    time_s = random.uniform(-0.1, 0.1, n).astype(np.float32)
    turn = random.normal(size=3) * rate
    speed = random.normal(size=3) * 10
    out = np.zeros((n, 3), np.float32)
    run(kernels.deskew, xyz, time_s, turn, speed, out)
    np.testing.assert_allclose(out, twins.deskew(xyz, time_s, turn, speed), atol=1e-5)


def cameras(random, k):
    matrix = (
        np.stack([np.diag([200.0, 200.0, 1.0]) @ random_matrix(random) for _ in range(k)])
        if k
        else None
    )
    if matrix is None:
        return np.zeros((0, 3, 4), np.float32), np.zeros((0, 2))
    matrix[:, :2] += np.array([80.0, 45.0])[:, None] * matrix[:, 2:]
    return matrix.astype(np.float32), np.tile([160.0, 90.0], (k, 1))


@pytest.mark.parametrize(("n", "k"), [(0, 2), (5, 0), (1, 1), (1100, 3)])
def test_project(run, n, k):
    random = np.random.default_rng(n + k)
    xyz = cloud(random, n)
    if n > 100:
        xyz[:6] = [
            [np.nan, 0, 0],
            [np.inf, 0, 0],
            [1e30, 1e30, 1e30],
            [-1e30, 0, 0],
            [0, 0, 1e-30],
            [0, 0, 0],
        ]
    matrix, size_wh = cameras(random, k)
    room = n * k
    point = np.zeros(room, np.int32)
    camera = np.zeros(room, np.uint8)
    uv = np.zeros((room, 2), np.float32)
    depth = np.zeros(room, np.float32)
    end = run(kernels.project, xyz, matrix, size_wh, 1.0, 1.0, point, camera, uv, depth)
    expected = twins.project(xyz, matrix, size_wh, 1.0, 1.0)
    np.testing.assert_array_equal(point[:end], expected.point)
    np.testing.assert_array_equal(camera[:end], expected.camera)
    np.testing.assert_allclose(uv[:end], expected.uv, atol=2e-3)
    np.testing.assert_allclose(depth[:end], expected.depth, rtol=1e-5)
    if end:
        short = np.zeros(end - 1, np.int32)
        assert run(kernels.project, xyz, matrix, size_wh, 1.0, 1.0, short, camera, uv, depth) == -1


@pytest.mark.parametrize("dilate_cells", [0, 1, 2, 12])  # 12: wider than the image
@pytest.mark.parametrize("m", [0, 1, 300])
def test_visible(run, m, dilate_cells):
    random = np.random.default_rng(m)
    camera = random.integers(0, 2, m).astype(np.uint8)
    uv = random.uniform(0, [160, 90], (m, 2)).astype(np.float32)
    depth = random.uniform(1, 50, m).astype(np.float32)
    keep = np.zeros(m, np.bool_)
    grid_hw = np.array([[6, 10], [12, 20]])
    cell_px = np.array([16.0, 8.0])
    run(kernels.visible, camera, uv, depth, grid_hw, cell_px, 0.1, 0.5, dilate_cells, keep)
    np.testing.assert_array_equal(
        keep, twins.visible(camera, uv, depth, cell_px, 0.1, 0.5, dilate_cells)
    )


def test_pack_and_unpack(run):
    random = np.random.default_rng(0)
    rows = random.integers(-(2**18) + 2, 2**18 - 2, (50, 4)).astype(np.int32)
    rows[:, 0] = random.integers(0, 128, 50)
    keys = np.zeros(50, np.uint64)
    back = np.zeros((50, 4), np.int32)
    assert run(kernels.pack_rows, rows, keys)
    np.testing.assert_array_equal(keys, twins.pack(rows))
    assert int(run(kernels.pack, *(int(c) for c in rows[0]))) == int(keys[0])
    run(kernels.unpack, keys, back)
    np.testing.assert_array_equal(back, rows)
    for wrong in (
        [128, 0, 0, 0],
        [-1, 0, 0, 0],
        [0, 2**18, 0, 0],
        [0, 0, -(2**18), 0],
        [0, 0, 0, -(2**31)],
    ):
        assert not run(kernels.pack_rows, np.array([wrong], np.int32), np.zeros(1, np.uint64))


@pytest.mark.parametrize("n", [0, 1, 200])
def test_cell_keys(run, n):
    random = np.random.default_rng(n)
    xyz = cloud(random, n)
    rotation = random_matrix(random)[:, :3]
    translation = random.normal(size=3)
    keys = np.zeros(n, np.uint64)
    assert run(kernels.cell_keys, xyz, rotation, translation, 0.3, keys)
    np.testing.assert_array_equal(keys, twins.cell_keys(xyz, rotation, translation, 0.3))
    for wrong in (np.nan, np.inf, 1e20):
        bad = np.full((1, 3), wrong, np.float32)
        assert not run(kernels.cell_keys, bad, np.eye(3), np.zeros(3), 0.3, np.zeros(1, np.uint64))


@pytest.mark.parametrize("n", [0, 1, 300])
def test_distinct_and_find(run, n):
    random = np.random.default_rng(n)
    keys = random.integers(0, 40, n).astype(np.uint64) << np.uint64(40)
    table = np.full(1024, -1, np.int32)
    unique = np.zeros(n, np.uint64)
    inverse = np.zeros(n, np.int32)
    count = run(kernels.distinct, keys, table, unique, inverse)
    expected = twins.distinct(keys)
    np.testing.assert_array_equal(unique[:count], expected.keys)
    np.testing.assert_array_equal(inverse, expected.inverse)
    wanted = np.arange(50, dtype=np.uint64) << np.uint64(40)
    index = np.zeros(50, np.int32)
    run(kernels.find, wanted, unique[:count], table, index)
    np.testing.assert_array_equal(index, twins.find(wanted, unique[:count]))
    assert [run(kernels.find_one, key, unique[:count], table) for key in wanted] == index.tolist()
    assert 0 <= run(kernels.hash_slot, wanted[1], table) < len(table)


def test_hash_probes_past_full_slots(run):
    table = np.full(16, -1, np.int32)
    unique = np.zeros(12, np.uint64)
    inverse = np.zeros(12, np.int32)
    keys = np.arange(12, dtype=np.uint64)
    assert run(kernels.distinct, keys, table, unique, inverse) == 12
    index = np.zeros(40, np.int32)
    run(kernels.find, np.arange(40, dtype=np.uint64), unique, table, index)
    np.testing.assert_array_equal(index, twins.find(range(40), unique))


def test_tally_adds_and_takes_away(run):
    random = np.random.default_rng(0)
    cell = random.integers(0, 5, 60).astype(np.int32)
    label = random.integers(0, 4, 60).astype(np.uint8)
    amount = random.random(60, np.float32)
    sums = np.zeros((5, 4), np.int64)
    support = np.zeros((5, 4), np.int64)
    run(votes_kernels.tally, cell, label, amount, 1024.0, 1, sums)
    run(votes_kernels.count, cell, label, 1, support)
    np.testing.assert_array_equal(sums, twins.tally(cell, label, amount, 1024, (5, 4)))
    np.testing.assert_array_equal(support, twins.tally(cell, label, np.ones(60), 1, (5, 4)))
    wanted = np.arange(-1, 5, dtype=np.int32)
    labels = np.full(6, 255, np.uint8)
    run(votes_kernels.majority, sums, wanted, labels)
    assert labels.tolist() == [255, *sums.argmax(axis=1)]
    run(votes_kernels.tally, cell, label, amount, 1024.0, -1, sums)
    run(votes_kernels.count, cell, label, -1, support)
    assert not sums.any()
    assert not support.any()


@pytest.mark.parametrize("n", [0, 1, 250])
def test_connect(run, n):
    """The clusters of a grid with two kinds of cells are those of flooding."""
    random = np.random.default_rng(n)
    cells = np.unique(random.integers(0, [2, 14, 14, 6], (n, 4)), axis=0).astype(np.int32)
    index = index_coords(cells)
    parent = np.zeros(len(cells), np.int32)
    run(clusters_kernels.connect, index.keys, index.table, parent)
    ours = {frozenset(np.flatnonzero(parent == one).tolist()) for one in set(parent.tolist())}
    assert ours == {frozenset(cluster) for cluster in twins.clusters(cells)}
    assert all(run(clusters_kernels.root, parent, i) == parent[i] for i in range(len(cells)))


# --- ground ---------------------------------------------------------------------------------------

CORNER = np.array([-10.0, -8.0])
SHAPE = (40, 32)


def test_gather_and_place(run):
    random = np.random.default_rng(0)
    xyz = cloud(random, 400, 8.0)
    matrix = random_matrix(random)
    rotation = np.ascontiguousarray(matrix[:, :3])
    translation = matrix[:, 3].copy()
    moved = xyz[::3].astype(np.float64) @ rotation.T + translation
    flat = twins.squares(moved[:, :2], CORNER, 0.5, SHAPE)
    cell = np.zeros(400, np.int32)
    z = np.zeros(400, np.float32)
    end = run(ground_kernels.gather, xyz, rotation, translation, CORNER, 0.5, SHAPE, 3, cell, z, 0)
    np.testing.assert_array_equal(cell[:end], flat[flat >= 0])
    np.testing.assert_allclose(z[:end], moved[flat >= 0, 2], atol=1e-5)
    np.testing.assert_allclose(run(ground_kernels.place, rotation, translation, xyz, 3), moved[1])
    found = [run(ground_kernels.column_of, x, y, CORNER, 0.5, SHAPE) for x, y, _ in moved]
    np.testing.assert_array_equal(found, flat)


def test_ground_surface(run):
    random = np.random.default_rng(1)
    cell = random.integers(0, 60, 400).astype(np.int32)
    z = random.normal(size=400).astype(np.float32)
    low = np.zeros(80, np.float32)
    run(ground_kernels.low_quantile, cell, z, 0.3, low)
    np.testing.assert_allclose(low, twins.low_quantile(cell, z, 0.3, 80))
    low = low.reshape(10, 8)
    expected = twins.limit_slope(low.astype(np.float64), 0.1)
    run(ground_kernels.limit_slope, low, 0.1)
    np.testing.assert_allclose(low, expected, atol=1e-6)


@pytest.mark.parametrize("seeds", [0, 1, 2])
def test_grow_ground(run, seeds):
    random = np.random.default_rng(seeds)
    shape = (17, 13)
    low = random.normal(size=shape).astype(np.float32) * np.float32(0.3)
    low[random.random(shape) < 0.4] = np.inf
    seed = np.full(shape, np.nan, np.float32)
    seed[5, 6] = 0.1 if seeds else np.nan
    seed[12, 2] = -0.2 if seeds > 1 else np.nan
    ground = np.zeros(shape, np.float32)
    gap = np.zeros(shape, np.float32)
    run(ground_kernels.grow_ground, low, seed, 0.15, 0.2, 0.5, 2, ground, gap)
    expected = twins.grow_ground(low, seed, 0.15, 0.2, 0.5, 2)
    np.testing.assert_allclose(ground, expected.ground, atol=1e-5)
    np.testing.assert_allclose(gap, expected.gap, atol=1e-5)
    assert np.isnan(ground).all() == (seeds == 0)
    assert seeds == 0 or 20 < (gap == 0).sum() < 150  # some are taken for the ground, some not


def test_heights_and_columns(run):
    random = np.random.default_rng(2)
    ground = random.normal(size=(20, 16)).astype(np.float32)
    ground[3, 4] = np.inf
    xyz = cloud(random, 600, 3.0) + np.float32([0, 0, 4])
    height = np.zeros(600, np.float32)
    top = np.zeros(600, np.float32)
    known = np.zeros(600, np.bool_)
    gap = random.uniform(0, 3, ground.shape).astype(np.float32)
    place = np.eye(3), np.zeros(3), CORNER, 1.0
    run(ground_kernels.heights, xyz, *place, ground, 0.5, gap, 1.0, height, known)
    np.testing.assert_allclose(height, twins.heights(xyz, CORNER, 1.0, ground, 0.5), atol=1e-4)
    inside = np.flatnonzero(~np.isnan(height))
    cells = np.floor(xyz[inside, :2] - CORNER).astype(int)
    np.testing.assert_array_equal(known[inside], gap[cells[:, 0], cells[:, 1]] <= 1.0)
    assert not known[np.isnan(height)].any()
    assert 0 < known.sum() < len(inside)
    bits = np.zeros(SHAPE[0] * SHAPE[1], np.uint64)
    run(ground_kernels.stack, xyz, height, np.eye(3), np.zeros(3), CORNER, 0.5, SHAPE, 0.25, bits)
    columns = twins.stack(xyz, height, CORNER, 0.5, SHAPE, 0.25)
    assert {
        v: {k for k in range(64) if int(bits[v]) >> k & 1} for v in np.flatnonzero(bits).tolist()
    } == columns
    run(
        ground_kernels.tops,
        xyz,
        height,
        np.eye(3),
        np.zeros(3),
        CORNER,
        0.5,
        SHAPE,
        0.25,
        4,
        bits,
        top,
    )
    np.testing.assert_allclose(
        top, twins.tops(xyz, height, CORNER, 0.5, SHAPE, 0.25, 4, columns), atol=1e-6
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=SEEDS,
    n=st.integers(0, 60),
    k=st.integers(0, 3),
    scale=st.sampled_from([1e-3, 1.0, 1e4, 1e30]),
)
def test_project_on_any_cloud(seed, n, k, scale):
    random = np.random.default_rng(seed)
    xyz = cloud(random, n, scale)
    (matrix, size_wh) = cameras(random, k)
    room = n * k
    point = np.zeros(room, np.int32)
    camera = np.zeros(room, np.uint8)
    uv = np.zeros((room, 2), np.float32)
    depth = np.zeros(room, np.float32)
    end = kernels.project(xyz, matrix, size_wh, 1.0, 1.0, point, camera, uv, depth)
    sure = twins.project(xyz, matrix, size_wh, 1.0 + 1e-4, 1.0 + 1e-2)
    most = twins.project(xyz, matrix, size_wh, 1.0 - 1e-4, 1.0 - 1e-2)
    ours = set(zip(point[:end].tolist(), camera[:end].tolist(), strict=True))
    assert set(zip(sure.point.tolist(), sure.camera.tolist(), strict=True)) <= ours
    assert ours <= set(zip(most.point.tolist(), most.camera.tolist(), strict=True))

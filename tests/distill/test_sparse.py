"""The four sparse ops against dense convolutions, float64 and spconv.

Kernel maps and compiled loops against twins.
"""

from __future__ import annotations

import builtins
import itertools
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from clipsweep.distill.sparse import native as sparse_native
from clipsweep.distill.sparse import native_kernels as sparse_kernels
from clipsweep.distill.sparse.native import convolve
from clipsweep.distill.sparse.ops import Down, Pointwise, Sites, SparseTensor, SubMConv3d, Up
from clipsweep.projection import grid, kernels
from clipsweep.tools.benchmarks import sparse as bench

SIDE = 8


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random_coords(
    count: int, seed: int = 0, frames: int = 2, side: int = SIDE, shift: int = 0
) -> Tensor:
    """At most ``count`` distinct cells in random order."""
    random = torch.Generator().manual_seed(seed)
    frame = torch.randint(0, frames, (count, 1), generator=random)
    cells = torch.cat([frame, torch.randint(0, side, (count, 3), generator=random) + shift], 1)
    cells = torch.unique(cells, dim=0)
    return cells[torch.randperm(len(cells), generator=random)].int()


def to_dense(coords: Tensor, feats: Tensor, frames: int = 2, side: int = SIDE) -> Tensor:
    out = feats.new_zeros(frames, feats.shape[1], side, side, side)
    b, x, y, z = coords.long().unbind(1)
    out[b, :, x, y, z] = feats
    return out


def at_sites(dense: Tensor, coords: Tensor) -> Tensor:
    b, x, y, z = coords.long().unbind(1)
    return dense[b, :, x, y, z]


def as_dense_weight(op: torch.nn.Module) -> Tensor:
    return op.weight.permute(0, 4, 1, 2, 3)


def dense_op(op: torch.nn.Module, dense: Tensor) -> Tensor:
    weight = as_dense_weight(op)
    if isinstance(op, SubMConv3d):
        return functional.conv3d(dense, weight, padding=1)
    if isinstance(op, Down):
        return functional.conv3d(dense, weight, stride=2)
    if isinstance(op, Up):
        return functional.conv_transpose3d(dense, weight.transpose(0, 1), stride=2)
    return functional.conv3d(dense, weight)


# --- against dense convolutions -------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 40, 700])
@pytest.mark.parametrize("channels", [(5, 7), (32, 48), (16, 33)])
@pytest.mark.parametrize("kind", [SubMConv3d, Down, Up, Pointwise])
def test_native_equals_dense(kind, count: int, channels: tuple[int, int]) -> None:
    torch.manual_seed(count)
    op = kind(*channels)
    coords = random_coords(count, seed=count)
    sites = Sites(coords, "native")
    if kind is Up:
        coarse = Down(1, 1)(SparseTensor(torch.zeros(len(coords), 1), sites)).sites
        feats = torch.randn(len(coarse), channels[0], requires_grad=True)
        out = op(SparseTensor(feats, coarse), sites)
        expected = at_sites(dense_op(op, to_dense(coarse.coords, feats, side=SIDE // 2)), coords)
    else:
        feats = torch.randn(len(coords), channels[0], requires_grad=True)
        out = op(SparseTensor(feats, sites))
        expected = at_sites(dense_op(op, to_dense(coords, feats)), out.sites.coords)
    torch.testing.assert_close(out.feats, expected, atol=1e-5, rtol=1e-5)
    upstream = torch.randn_like(expected)
    ours = torch.autograd.grad(out.feats, [feats, op.weight], upstream)
    theirs = torch.autograd.grad(expected, [feats, op.weight], upstream)
    for mine, other in zip(ours, theirs, strict=True):
        scale = max(1.0, other.abs().max().item() if other.numel() else 0.0)
        torch.testing.assert_close(mine / scale, other / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [-5, -64, 3, 100_000])
def test_coarse_cells_round_down(shift: int) -> None:
    coords = random_coords(200, shift=shift)
    coarse = Down(1, 1)(
        SparseTensor(torch.zeros(len(coords), 1), Sites(coords, "native"))
    ).sites.coords
    expected = coords.clone()
    expected[:, 1:] = torch.div(coords[:, 1:], 2, rounding_mode="floor")
    assert {tuple(row) for row in coarse.tolist()} == {tuple(row) for row in expected.tolist()}
    assert len(torch.unique(coarse, dim=0)) == len(coarse)


@pytest.mark.parametrize("count", [0, 1, 2000])
def test_bfloat16_products_are_summed_in_float32(count: int) -> None:
    torch.manual_seed(0)
    coords = random_coords(count, side=14)
    pairs = Sites(coords, "native").submanifold
    feats = torch.randn(len(coords), 37).bfloat16().requires_grad_()
    weight = torch.randn(50, 3, 3, 3, 37).bfloat16().float().requires_grad_()
    upstream = torch.randn(len(coords), 50).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = convolve(feats, weight, pairs)
    assert out.dtype == torch.bfloat16
    assert weight.dtype == torch.float32
    twins = [value.detach().double().requires_grad_() for value in (feats, weight)]
    exact = convolve(*twins, pairs)
    ours = torch.autograd.grad(out, [feats, weight], upstream)
    theirs = torch.autograd.grad(exact, twins, upstream.double())
    one_rounding = 2**-8
    torch.testing.assert_close(out.double(), exact, rtol=one_rounding, atol=1e-3)
    torch.testing.assert_close(ours[0].double(), theirs[0], rtol=one_rounding, atol=1e-3)
    # never rounded to bfloat16
    torch.testing.assert_close(ours[1].double(), theirs[1], rtol=1e-5, atol=1e-4)


def test_float64_goes_through_torch() -> None:
    coords = random_coords(60)
    feats = torch.randn(len(coords), 3, dtype=torch.float64, requires_grad=True)
    op = SubMConv3d(3, 4).double()
    out = op(SparseTensor(feats, Sites(coords, "native")))
    torch.testing.assert_close(out.feats, at_sites(dense_op(op, to_dense(coords, feats)), coords))


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [(7, 16), (32, 32), (96, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(
    threads: None, dtype: torch.dtype, channels: tuple[int, int]
) -> None:
    coords = random_coords(4000, side=24)
    torch.manual_seed(1)
    feats = torch.randn(len(coords), channels[0])
    ops = [SubMConv3d(*channels), Down(channels[1], channels[1]), Up(channels[1], channels[0])]

    def run(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        x = feats.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            fine = ops[0](SparseTensor(x, Sites(coords, "native")))
            out = ops[2](ops[1](fine), fine.sites).feats
        return [
            out,
            *torch.autograd.grad(out, [x, *(op.weight for op in ops)], torch.ones_like(out)),
        ]

    first = run(1)
    for count in (1, 2, 3):
        for mine, other in zip(run(count), first, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.slow
def test_memory_stays_flat() -> None:
    coords = random_coords(8_000, side=40)
    ops = torch.nn.ModuleList([SubMConv3d(8, 64), Down(64, 64), Up(64, 64), Pointwise(64, 8)])
    optimiser = torch.optim.SGD(ops.parameters(), 1e-4)

    def step() -> None:
        fine = ops[0](SparseTensor(torch.randn(len(coords), 8), Sites(coords, "native")))
        out = ops[3](ops[2](ops[1](fine), fine.sites)).feats
        optimiser.zero_grad()
        out.square().mean().backward()
        optimiser.step()

    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1])

    for _ in range(50):
        step()
    before = resident()
    for _ in range(200):
        step()
    assert resident() < 1.02 * before


# --- spconv ---------------------------------------------------------------------------------------


def one_pass(
    ops: list[torch.nn.Module], coords: Tensor, feats: Tensor, backend: str
) -> list[tuple[Tensor, Tensor]]:
    """Coordinates and features after each op, rows sorted."""
    fine = ops[0](SparseTensor(feats, Sites(coords, backend)))
    coarse = ops[1](fine)
    deep = ops[3](ops[2](coarse))
    levels = [fine, coarse, deep, ops[4](deep, fine.sites)]
    found = []
    for level in levels:
        rows = level.sites.coords.cpu()
        order = np.lexsort(rows.numpy().T[::-1])
        found.append((rows[order], level.feats.detach().cpu()[order]))
    return found


def ops_of_all_kinds() -> list[torch.nn.Module]:
    torch.manual_seed(0)
    return [SubMConv3d(5, 16), Down(16, 32), SubMConv3d(32, 24), Pointwise(24, 32), Up(32, 8)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shift", [0, -37])
def test_native_equals_spconv_on_one_thread(threads: None, shift: int) -> None:
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    torch.set_num_threads(1)  # with two, spconv 2.3.8 races on the CPU
    coords = random_coords(500, shift=shift)
    feats = torch.randn(len(coords), 5)
    ours = one_pass(ops_of_all_kinds(), coords, feats, "native")
    theirs = one_pass(ops_of_all_kinds(), coords, feats, "spconv")
    for (rows, mine), (other_rows, other) in zip(ours, theirs, strict=True):
        assert torch.equal(rows, other_rows)
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.filterwarnings("ignore")
def test_native_equals_spconv_on_cuda() -> None:
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    coords = random_coords(500, shift=-9)
    ops = ops_of_all_kinds()
    feats = torch.randn(len(coords), 5)
    ours = one_pass(ops, coords, feats, "native")
    cuda = [op.cuda() for op in ops]
    for backend in ("native", "spconv", "auto"):
        theirs = one_pass(cuda, coords.cuda(), feats.cuda(), backend)
        for (rows, mine), (other_rows, other) in zip(ours, theirs, strict=True):
            assert torch.equal(rows, other_rows)
            torch.testing.assert_close(mine, other, atol=1e-3, rtol=1e-3)


def test_missing_spconv_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args, **kwargs):
        if name.startswith("spconv"):
            raise ModuleNotFoundError("No module named 'spconv'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    for name in [name for name in sys.modules if name.startswith("spconv")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r"model.backend=native"):
        Sites(random_coords(5), "spconv")
    Sites(random_coords(5), "auto")


# --- kernel maps ----------------------------------------------------------------------------------


def lists_of(pairs: grid.PairLists) -> list[set[tuple[int, int]]]:
    rows = list(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True))
    return [set(rows[a:b]) for a, b in itertools.pairwise(pairs.starts.tolist())]


@pytest.fixture(params=["compiled", "python"])
def plain(request, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with compiled kernels and with the Python that they are compiled from."""
    if request.param == "python":
        for name in ("half_neighbours", "halve", "group_rows"):
            monkeypatch.setattr(kernels, name, getattr(kernels, name).py_func)


@pytest.mark.parametrize("count", [0, 1, 60])
def test_neighbours(plain: None, count: int) -> None:
    coords = random_coords(count, shift=-3, side=5).numpy()
    row_of = {tuple(row): i for i, row in enumerate(coords.tolist())}
    with np.errstate(over="ignore"):
        found = lists_of(grid.neighbours(grid.index_coords(coords)))
    for k, offset in enumerate(itertools.product((-1, 0, 1), repeat=3)):
        shifted = [tuple(np.add(row, (0, *offset)).tolist()) for row in coords]
        assert found[k] == {
            (row_of[other], i) for i, other in enumerate(shifted) if other in row_of
        }


@pytest.mark.parametrize("count", [0, 1, 60])
def test_coarsen(plain: None, count: int) -> None:
    coords = random_coords(count, shift=-3, side=5).numpy()
    index, pairs = grid.coarsen(coords)
    coarse = index.coords()
    parents = np.concatenate([coords[:, :1], coords[:, 1:] // 2], axis=1)
    assert {tuple(row) for row in coarse.tolist()} == {tuple(row) for row in parents.tolist()}
    for octant, pairs_of_octant in zip(
        itertools.product((0, 1), repeat=3), lists_of(pairs), strict=True
    ):
        for fine, parent in pairs_of_octant:
            np.testing.assert_array_equal(coarse[parent], parents[fine])
            np.testing.assert_array_equal(coords[fine, 1:], 2 * coarse[parent, 1:] + octant)
    assert sorted(pairs.source.tolist()) == list(range(len(coords)))


@given(st.integers(0, 400), st.integers(1, 64), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_tiles_hold_the_same_pairs(count: int, tile_rows: int, seed: int) -> None:
    pairs = grid.neighbours(grid.index_coords(random_coords(count, seed).numpy()))
    rows = int(pairs.target.max(initial=-1)) + 1
    tiled = pairs.tile(rows, tile_rows)
    found: list[set[tuple[int, int]]] = [set() for _ in range(27)]
    for number, some in enumerate(lists_of(tiled)):
        assert all(target // tile_rows == number // 27 for _, target in some)
        found[number % 27] |= some
    assert found == lists_of(pairs)


def test_wrong_cells_are_refused() -> None:
    cells = np.zeros((2, 4), np.int32)
    with pytest.raises(ValueError, match="1 of 2 cells stand twice"):
        grid.index_coords(cells)
    cells[1, 0] = 128
    with pytest.raises(ValueError, match="more than 128 frames"):
        grid.index_coords(cells)
    cells[1] = (0, 0, 1 << 18, 0)
    with pytest.raises(ValueError, match="beyond"):
        grid.index_coords(cells)


# --- compiled products ----------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 30), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_multiply(rows: int, depth: int, panels: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    columns = panels * sparse_kernels.LANES
    a, b = (random.normal(size=n).astype(np.float32) for n in (500, depth * columns + 3))
    c = random.normal(size=rows * columns).astype(np.float32)
    padded = rows + sparse_kernels.ROWS
    at_a = random.integers(0, 500 - 3 * max(depth, 1), padded)
    at_c = np.append(random.permutation(rows) * columns, np.zeros(padded - rows, np.int64))
    expected = c.astype(np.float64)
    for r in range(rows):
        line = sum(
            (float(a[at_a[r] + 3 * k]) * b[3 + k * columns :][:columns] for k in range(depth)),
            np.zeros(columns),
        )
        expected[at_c[r] : at_c[r] + columns] += line
    sparse_kernels.multiply(a, at_a, 3, b, 3, columns, depth, c, at_c, rows, columns)
    np.testing.assert_allclose(c, expected, atol=1e-4)


def multiply_twin(a, at_a, step_a, b, at_b, step_b, depth, c, at_c, rows, columns) -> None:
    """``multiply`` in NumPy; int32 operands are pairs of bfloat16."""

    def numbers(values: np.ndarray) -> list[np.ndarray]:
        if values.dtype == np.float32:
            return [values.astype(np.float64)]
        halves = values.view(np.int16).reshape(-1, 2)
        return [
            (half.astype(np.int32) << 16).view(np.float32).astype(np.float64) for half in halves.T
        ]

    k = np.arange(depth)[:, None]
    j = np.arange(columns)
    for x, y in zip(numbers(a), numbers(b), strict=True):
        for r in range(rows):
            c[at_c[r] : at_c[r] + columns] += (
                x[at_a[r] + k[:, 0] * step_a] @ y[at_b + k * step_b + j]
            )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_as_plain_python(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    coords = random_coords(25, side=4)
    pairs = Sites(coords, "native").submanifold
    torch.manual_seed(0)
    feats = torch.randn(len(coords), 5).to(dtype)
    upstream = torch.randn(len(coords), 3).to(dtype)
    weight = torch.randn(3, 27, 5)

    def run() -> list[Tensor]:
        x = feats.clone().requires_grad_()
        w = weight.clone().requires_grad_()
        out = sparse_native.convolve(x, w, pairs)
        return [out, *torch.autograd.grad(out, [x, w], upstream)]

    compiled = run()
    for name in ("convolve", "weight_gradient", "pack_weight", "round_bits"):
        monkeypatch.setattr(sparse_kernels, name, getattr(sparse_kernels, name).py_func)
    monkeypatch.setattr(sparse_kernels, "multiply", multiply_twin)
    monkeypatch.setattr(sparse_kernels, "CHUNK", 8)
    for mine, other in zip(compiled, run(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=2**-7)


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=50))
@settings(deadline=None)
def test_rounding_to_bfloat16(values: list[float]) -> None:
    numbers = np.array(values, np.float32)
    expected = torch.from_numpy(numbers).bfloat16()
    bits = np.array(
        [sparse_kernels.round_bits(value) for value in numbers.view(np.int32)], np.int16
    )
    found = torch.from_numpy(bits).view(torch.bfloat16)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


# --- the bench ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_bench_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("spconv.pytorch", reason="spconv is not installed")
    monkeypatch.setattr(bench, "_CROP", 10)
    monkeypatch.setattr(bench, "_SIDE", 64)
    random = np.random.default_rng(0)
    cloud = np.abs(random.normal(size=(3000, 5)) * (2, 2, 0.2, 0.2, 0.1)).astype(np.float32)
    rows = {
        row["name"].partition(": ")[2]: row for row in bench.rows([cloud], seconds=0.0, size="tiny")
    }
    assert rows["step, bf16"]["bar"] == 2
    assert rows["rate of a step, float32"]["bar"] == 0.6
    assert rows["worst error against dense conv3d near the car"]["ratio"] > 1
    assert all(row["ratio"] > 0 for row in rows.values())

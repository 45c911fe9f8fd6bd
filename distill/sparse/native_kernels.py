"""CPU kernels of the sparse convolution: gather rows, multiply by a weight, scatter the sums.

What is done. ``multiply`` takes ``ROWS`` gathered rows at a time, each anywhere in memory, times
two vectors of a weight's columns, and keeps all these sums in registers over the depth (the outer
product micro-kernel of matrix libraries). ``convolve`` and ``weight_gradient`` are loops of it over
a kernel map.

Why not BLAS or oneDNN. They want rows copied together first, and choose the order of their sums by
the number of threads; here it is fixed, so that results are the same on any number.

Why LLVM instructions. Numba compiles Python loops, but LLVM does not find the micro-kernel in
them. So ``_block`` builds it with llvmlite, as Numba itself does, and each call of it is replaced
by these instructions. Two of them llvmlite lacks, so they are called by the name that LLVM gives
them: the fused multiply-add of vectors, and AVX-512's dot product of bfloat16 pairs.

The types. NumPy and Numba have no bfloat16, so arrays hold its bits:
- float32: rows, packed weights, all sums;
- int16: one bfloat16, as torch stores it (``native.bits``);
- int32: two bfloat16 that follow each other along the depth, as the dot product takes them;
- ``_BFloat``: LLVM's own bfloat16, in the signature of the dot product only.
``@overload`` chooses a loop by the type of its arrays when Numba compiles the caller.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, overload

from clipsweep.projection.jit import jit

# NUMBA_CPU_FEATURES, or none at all for NUMBA_CPU_NAME=generic
_CHOSEN = getattr(config, "CPU_FEATURES", None)
_FEATURES = get_host_cpu_features() if _CHOSEN is None else _CHOSEN
_AVX512 = "+avx512f" in _FEATURES
_BF16 = _AVX512 and "+avx512bf16" in _FEATURES
_FMA = "+fma" in _FEATURES or platform.machine() in ("aarch64", "arm64")

LANES = 16 if _AVX512 else 8
"""Floats in one vector; packed matrices have a multiple of it as columns."""

ROWS = 8 if _AVX512 else 6
"""Rows of a block: with two vectors of columns as many sums as the registers hold."""

CHUNK = 256
"""Pairs gathered at a time for the gradient of a weight; even."""

# --- the micro-kernel -----------------------------------------------------------------------------

_F32 = ir.FloatType()
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_FLOATS = ir.VectorType(_F32, LANES)
_PAIRS = ir.VectorType(_I32, LANES)


class _BFloat(ir.Type):
    """LLVM type ``bfloat`` (bfloat16), which llvmlite lacks."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


def _call(b: Any, name: str, *operands: Any) -> Any:
    """Calls an LLVM function by name; the result is a vector of floats."""
    signature = ir.FunctionType(_FLOATS, [operand.type for operand in operands])
    return b.call(cgutils.get_or_insert_function(b.module, signature, name), operands)


def _fma(b: Any, x: Any, y: Any, total: Any) -> Any:
    """Fused multiply-add (FMA) of float vectors: ``total + x * y``."""
    if _FMA:
        return _call(b, f"llvm.fma.v{LANES}f32", x, y, total)
    return b.fadd(total, b.fmul(x, y))


def _dot_pairs(b: Any, x: Any, y: Any, total: Any) -> Any:
    """Dot product of bfloat16 pairs: ``total + x.low * y.low + x.high * y.high``.

    By one instruction where there is one, else by widening each half to float32.
    """
    if _BF16:
        halves = ir.VectorType(_BFloat(), 2 * LANES)
        x = b.bitcast(x, halves)
        y = b.bitcast(y, halves)
        return _call(b, "llvm.x86.avx512bf16.dpbf16ps.512", total, x, y)
    shift = ir.Constant(_PAIRS, [16] * LANES)
    mask = ir.Constant(_PAIRS, [-65536] * LANES)
    low = [b.bitcast(b.shl(side, shift), _FLOATS) for side in (x, y)]
    high = [b.bitcast(b.and_(side, mask), _FLOATS) for side in (x, y)]
    return _fma(b, high[0], high[1], _fma(b, low[0], low[1], total))


def _splat(b: Any, scalar: Any, vector: Any) -> Any:
    """Broadcasts a scalar to a SIMD vector."""
    nothing = ir.Constant(vector, ir.Undefined)
    first = b.insert_element(nothing, scalar, _I32(0))
    return b.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES))


def _emit(b: Any, vectors: int, is_float: bool, arrays: Sequence[Any], numbers: Any) -> None:
    """Emits the LLVM instructions of the matrix product of a block; arguments as in ``_block``.

    Sums stay in registers over the depth, then are added to memory row by row.
    """
    a, at_a, mat, c, at_c = arrays
    first, step_a, at_b, step_b, depth, column, rows = numbers
    vector = _FLOATS if is_float else _PAIRS
    dot = _fma if is_float else _dot_pairs
    zero = ir.Constant(_FLOATS, [0.0] * LANES)
    offsets = [b.add(first, _I64(r)) for r in range(ROWS)]
    row = [b.gep(a, [b.load(b.gep(at_a, [offset]))]) for offset in offsets]
    # LLVM turns these variables into registers
    sums = [[cgutils.alloca_once(b, _FLOATS) for _ in range(vectors)] for _ in range(ROWS)]
    for r in range(ROWS):
        for j in range(vectors):
            b.store(zero, sums[r][j])
    mat = b.gep(mat, [b.add(at_b, column)])
    with cgutils.for_range(b, depth) as loop:
        line = b.gep(mat, [b.mul(loop.index, step_b)])
        panel = [
            b.load(b.bitcast(b.gep(line, [_I64(LANES * j)]), vector.as_pointer()), align=4)
            for j in range(vectors)
        ]
        for r in range(ROWS):
            x = _splat(b, b.load(b.gep(row[r], [b.mul(loop.index, step_a)])), vector)
            for j in range(vectors):
                b.store(dot(b, x, panel[j], b.load(sums[r][j])), sums[r][j])
    for r in range(ROWS):
        with b.if_then(b.icmp_signed("<", _I64(r), rows), likely=True):
            line = b.gep(c, [b.add(b.load(b.gep(at_c, [offsets[r]])), column)])
            for j in range(vectors):
                out = b.bitcast(b.gep(line, [_I64(LANES * j)]), _FLOATS.as_pointer())
                b.store(b.fadd(b.load(out, align=4), b.load(sums[r][j])), out, align=4)


def _block(vectors: int) -> Any:
    """Matrix product micro-kernel for Numba: ``ROWS`` rows times ``vectors`` vectors of columns.

    Its arguments are those of ``multiply``: first the arrays, then where it is: the ``first`` row
    and the ``column``, of which ``rows`` rows are added to ``c``.
    """

    @intrinsic
    def block(  # type: ignore[no-untyped-def]
        _, a, at_a, b, c, at_c, first, step_a, at_b, step_b, depth, column, rows
    ):
        arrays = (a, at_a, b, c, at_c)
        is_float = a.dtype == types.float32

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data = [
                context.make_array(kind)(context, builder, array).data
                for kind, array in zip(arrays, args, strict=False)
            ]
            _emit(builder, vectors, is_float, data, args[len(arrays) :])
            return context.get_dummy_value()

        return types.void(*arrays, *[types.int64] * 7), generate

    return block


_multiply_wide = _block(2)
_multiply_narrow = _block(1)


@jit
def multiply(
    a: Any,
    at_a: Any,
    step_a: int,
    b: Any,
    at_b: int,
    step_b: int,
    depth: int,
    c: Any,
    at_c: Any,
    rows: int,
    columns: int,
) -> None:
    """Matrix product of gathered rows and a packed weight, added to rows of ``c``.

    ``c[at_c[r] + j] += sum_k a[at_a[r] + k * step_a] * b[at_b + k * step_b + j]``.

    All arrays are flat. ``at_a`` and ``at_c`` are read up to the next multiple of ``ROWS`` rows, so
    they must be valid there too; ``columns`` is a multiple of ``LANES``.
    """
    column = 0
    while column < columns:
        for first in range(0, rows, ROWS):
            left = min(ROWS, rows - first)
            if columns - column >= 2 * LANES:
                _multiply_wide(
                    a, at_a, b, c, at_c, first, step_a, at_b, step_b, depth, column, left
                )
            else:
                _multiply_narrow(
                    a, at_a, b, c, at_c, first, step_a, at_b, step_b, depth, column, left
                )
        column += 2 * LANES


# --- float32 and bfloat16 -------------------------------------------------------------------------

FLOAT = (types.float32, np.dtype(np.float32))
"""float32 as Numba and as NumPy name it: overloads serve compiled code and plain Python."""


@jit
def round_bits(bits: Any) -> Any:
    """Rounds a float32's bits to the nearest bfloat16's, ties to even; NaN stays NaN."""
    if (bits & 0x7FFFFFFF) > 0x7F800000:
        return np.int16(0x7FC0)
    return np.int16((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)


def _put(sums: Any, rows: int, out: Any, begin: int) -> None:
    """Writes accumulated sums to ``out``, rounded to its type (float32 or bfloat16)."""
    _put_as(sums, rows, out, begin)(sums, rows, out, begin)


@overload(_put)
def _put_as(sums, rows, out, begin):  # type: ignore[no-untyped-def]
    def as_float(sums, rows, out, begin):  # type: ignore[no-untyped-def]
        for r in range(rows):
            for j in range(out.shape[1]):
                out[begin + r, j] = sums[r, j]

    def as_bfloat(sums, rows, out, begin):  # type: ignore[no-untyped-def]
        bits = sums.view(np.int32)
        for r in range(rows):
            for j in range(out.shape[1]):
                out[begin + r, j] = round_bits(bits[r, j])

    return as_float if out.dtype in FLOAT else as_bfloat


def _pack_row(values: Any, row: int, packed: Any, place: int) -> None:
    """Copies a row of ``values`` to a place of a packed matrix.

    Of bfloat16, two places that follow each other share a row of int32.
    """
    _pack_row_as(values, row, packed, place)(values, row, packed, place)


@overload(_pack_row)
def _pack_row_as(values, row, packed, place):  # type: ignore[no-untyped-def]
    def as_float(values, row, packed, place):  # type: ignore[no-untyped-def]
        for j in range(values.shape[1]):
            packed[place, j] = values[row, j]

    def as_pairs(values, row, packed, place):  # type: ignore[no-untyped-def]
        if place & 1:
            for j in range(values.shape[1]):
                packed[place >> 1, j] |= np.int32(_half(values[row, j])) << 16
        else:
            for j in range(values.shape[1]):
                packed[place >> 1, j] = np.int32(_half(values[row, j])) & 0xFFFF

    return as_float if packed.dtype in FLOAT else as_pairs


def _half(value: Any) -> Any:
    """Converts to the bits of a bfloat16, from those bits or from a float32."""
    is_bits = isinstance(value, np.int16)  # pyright: ignore[reportArgumentType] # Numba's
    return value if is_bits else round_bits(value.view(np.int32))


@overload(_half)
def _half_of(value):  # type: ignore[no-untyped-def]
    def of_float(value):  # type: ignore[no-untyped-def]
        return round_bits(np.float32(value).view(np.int32))

    return of_float if value == types.float32 else lambda value: value


@jit
def pack_weight(weight: Any, first: int, last: int, packed: Any) -> None:
    """Packs the weight matrices of kernel offsets ``first`` to ``last`` for ``multiply``.

    ``weight`` is (k, depth, columns) float32 of any strides. ``packed`` is (k, depth, columns)
    float32, or (k, depth / 2, columns) int32 with pairs of bfloat16; columns up to a multiple of
    ``LANES``, zero where nothing is written.
    """
    for k in range(first, last):
        # a block of columns stays in cache while it is transposed
        for column in range(0, weight.shape[2], 16):
            values = weight[k, :, column : column + 16]
            place = packed[k, :, column : column + 16]
            for i in range(weight.shape[1]):
                _pack_row(values, i, place, i)


# --- convolution ----------------------------------------------------------------------------------


@jit
def convolve(
    feats: Any,
    weight: Any,
    starts: Any,
    source: Any,
    target: Any,
    tile_rows: int,
    first: int,
    last: int,
    out: Any,
) -> None:
    """Sparse convolution: writes tiles ``first`` to ``last`` of the output rows.

    Args:
        feats: input rows (v, i) float32 or (v, i/2) pairs.
        weight: packed (k, i or i/2, columns).
        starts: where the pairs of each tile and offset begin, (tiles * k + 1).
        source: input row of each pair.
        target: output row of each pair.
        tile_rows: output rows of a tile.
        first: first tile.
        last: the one after the last.
        out: (w, o) float32 or bfloat16 as int16.
    """
    offsets, depth, columns = weight.shape
    flat_feats = feats.reshape(-1)
    flat_weight = weight.reshape(-1)
    sums = np.empty((tile_rows, columns), np.float32)
    flat_sums = sums.reshape(-1)
    at_a = np.zeros(tile_rows + ROWS, np.int64)
    at_c = np.zeros(tile_rows + ROWS, np.int64)
    for tile in range(first, last):
        begin = tile * tile_rows
        rows = min(tile_rows, out.shape[0] - begin)
        sums[:rows] = 0
        for k in range(offsets):
            start = starts[tile * offsets + k]
            count = starts[tile * offsets + k + 1] - start
            for p in range(count):
                at_a[p] = np.int64(source[start + p]) * depth
                at_c[p] = (np.int64(target[start + p]) - begin) * columns
            multiply(
                flat_feats,
                at_a,
                1,
                flat_weight,
                k * depth * columns,
                columns,
                depth,
                flat_sums,
                at_c,
                count,
                columns,
            )
        _put(sums, rows, out, begin)


@jit
def weight_gradient(
    feats: Any,
    grad: Any,
    starts: Any,
    source: Any,
    target: Any,
    span: int,
    first: int,
    last: int,
    left: Any,
    right: Any,
    d_weight: Any,
) -> None:
    """Weight gradient of a sparse convolution at kernel offsets ``first`` to ``last``.

    Writes ``d_weight[:, k] = sum of outer(grad[target], feats[source])`` over the pairs of k.

    Args:
        feats: input rows (v, i), float32 or bfloat16 as int16.
        grad: gradient of the output rows (w, o), likewise.
        starts: see ``convolve``.
        source: input row of each pair.
        target: output row of each pair.
        span: tiles to do for all offsets before the next ones, while their rows are in cache.
        first: first offset.
        last: the one after the last.
        left: room for a chunk of ``grad``'s rows (CHUNK or CHUNK/2, o), float32 or int32.
        right: room for a chunk of ``feats``' rows (the same, i up to a multiple of ``LANES``), zero
            beyond i.
        d_weight: (o, k, i) float32.
    """
    width = left.shape[1]
    columns = right.shape[1]
    offsets = d_weight.shape[1]
    sums = np.zeros((last - first, width, columns), np.float32)
    flat_left = left.reshape(-1)
    flat_right = right.reshape(-1)
    flat_sums = sums.reshape(-1)
    at_a = np.zeros(width + ROWS, np.int64)
    at_c = np.zeros(width + ROWS, np.int64)
    tiles = (len(starts) - 1) // offsets
    for begin in range(0, tiles, span):
        for k in range(first, last):
            for o in range(width):
                at_a[o] = o
                at_c[o] = ((k - first) * width + o) * columns
            count = 0
            for tile in range(begin, min(begin + span, tiles)):
                for p in range(starts[tile * offsets + k], starts[tile * offsets + k + 1]):
                    _pack_row(grad, target[p], left, count)
                    _pack_row(feats, source[p], right, count)
                    count += 1
                    if count == CHUNK:
                        multiply(
                            flat_left,
                            at_a,
                            width,
                            flat_right,
                            0,
                            columns,
                            len(left),
                            flat_sums,
                            at_c,
                            width,
                            columns,
                        )
                        count = 0
            if count > 0:
                depth = (count * len(left) + CHUNK - 1) // CHUNK
                multiply(
                    flat_left,
                    at_a,
                    width,
                    flat_right,
                    0,
                    columns,
                    depth,
                    flat_sums,
                    at_c,
                    width,
                    columns,
                )
    for o in range(width):
        for k in range(first, last):
            for i in range(d_weight.shape[2]):
                d_weight[o, k, i] = sums[k - first, o, i]

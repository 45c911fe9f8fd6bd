"""Compiled loops of the batch norm, over rows of float32 or of bfloat16 as int16.

All sums are float32 or wider.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from clipsweep.distill.sparse.native_kernels import FLOAT, round_bits
from clipsweep.projection.jit import jit

CHUNK = 512
"""Rows of a chunk: one thread sums them, then the sums of chunks are added in order."""

GATE_OPEN = 0
GATE_BY_INPUT = 1
GATE_BY_OUTPUT = 2
"""How the backward pass finds where the ReLU let a value through; see norm.py.

Everywhere, as there was no ReLU; where ``(x - mean) * scale + bias`` is positive; where ``out`` is.
"""


def _load(x: Any, row: int, column: int) -> Any:
    """Loads an element of float32 or bfloat16 rows as float32."""
    return _load_as(x, row, column)(x, row, column)


@overload(_load)
def _load_as(x, row, column):  # type: ignore[no-untyped-def]
    def as_float(x, row, column):  # type: ignore[no-untyped-def]
        return x[row, column]

    def as_bfloat(x, row, column):  # type: ignore[no-untyped-def]
        return np.int32(np.int32(x[row, column]) << 16).view(np.float32)

    return as_float if x.dtype in FLOAT else as_bfloat


def _store(x: Any, row: int, column: int, value: Any) -> None:
    """Stores a float32 in the type of ``x``, float32 or bfloat16."""
    _store_as(x, row, column, value)(x, row, column, value)


@overload(_store)
def _store_as(x, row, column, value):  # type: ignore[no-untyped-def]
    def as_float(x, row, column, value):  # type: ignore[no-untyped-def]
        x[row, column] = value

    def as_bfloat(x, row, column, value):  # type: ignore[no-untyped-def]
        x[row, column] = round_bits(np.float32(value).view(np.int32))

    return as_float if x.dtype in FLOAT else as_bfloat


@jit
def moments(x: Any, first: int, last: int, mean: Any, square: Any) -> None:
    """Batch norm moments: writes mean and sum of squared deviations of each chunk of rows.

    ``(chunks, c) f32``.
    """
    for chunk in range(first, last):
        begin = chunk * CHUNK
        end = min((chunk + 1) * CHUNK, x.shape[0])
        centre = mean[chunk]
        spread = square[chunk]
        centre[:] = 0
        spread[:] = 0
        for r in range(begin, end):
            for j in range(x.shape[1]):
                centre[j] += _load(x, r, j)
        for j in range(x.shape[1]):
            centre[j] /= np.float32(end - begin)
        for r in range(begin, end):
            for j in range(x.shape[1]):
                deviation = _load(x, r, j) - centre[j]
                spread[j] += deviation * deviation


@jit
def apply(
    x: Any, mean: Any, scale: Any, bias: Any, add: Any, relu: bool, first: int, last: int, out: Any
) -> None:
    """Batch norm, sum and ReLU: writes ``relu((x - mean) * scale + bias + add)``.

    An ``add`` without rows is left out, and the ReLU unless ``relu``.
    """
    with_add = add.shape[0] > 0
    for r in range(first * CHUNK, min(last * CHUNK, x.shape[0])):
        for j in range(x.shape[1]):
            value = (_load(x, r, j) - mean[j]) * scale[j] + bias[j]
            if with_add:
                value += _load(add, r, j)
            # as a statement: as an expression numba makes it a branch, and the loop is no longer
            # vector code
            if relu:
                value = max(value, np.float32(0.0))
            _store(out, r, j, value)


@jit
def gradient_sums(
    x: Any,
    mean: Any,
    scale: Any,
    bias: Any,
    out: Any,
    grad: Any,
    gate: int,
    first: int,
    last: int,
    sums: Any,
    products: Any,
) -> None:
    """Gradient of weight and bias: writes each chunk's sums of ``g`` and of ``g * (x - mean)``.

    ``(chunks, c) f32``; for ``g`` see ``gradient``.
    """
    for chunk in range(first, last):
        total = sums[chunk]
        product = products[chunk]
        total[:] = 0
        product[:] = 0
        for r in range(chunk * CHUNK, min((chunk + 1) * CHUNK, x.shape[0])):
            for j in range(x.shape[1]):
                deviation = _load(x, r, j) - mean[j]
                g = _load(grad, r, j)
                if gate == GATE_BY_INPUT and deviation * scale[j] + bias[j] <= np.float32(0.0):
                    g = np.float32(0.0)
                if gate == GATE_BY_OUTPUT and _load(out, r, j) <= np.float32(0.0):
                    g = np.float32(0.0)
                total[j] += g
                product[j] += g * deviation


@jit
def gradient(
    x: Any,
    mean: Any,
    scale: Any,
    bias: Any,
    out: Any,
    grad: Any,
    gate: int,
    slope: Any,
    rest: Any,
    first: int,
    last: int,
    d_x: Any,
    d_add: Any,
) -> None:
    """Gradient of the input: writes ``d_x = scale * g + slope * (x - mean) + rest``.

    ``g`` is the gradient in front of the ReLU: ``grad`` where ``gate`` finds that a value was let
    through, else 0. It is written to ``d_add`` unless that has no rows. Only ``GATE_BY_OUTPUT``
    reads ``out``, which else has no rows.
    """
    with_add = d_add.shape[0] > 0
    for r in range(first * CHUNK, min(last * CHUNK, x.shape[0])):
        for j in range(x.shape[1]):
            deviation = _load(x, r, j) - mean[j]
            g = _load(grad, r, j)
            if gate == GATE_BY_INPUT and deviation * scale[j] + bias[j] <= np.float32(0.0):
                g = np.float32(0.0)
            if gate == GATE_BY_OUTPUT and _load(out, r, j) <= np.float32(0.0):
                g = np.float32(0.0)
            _store(d_x, r, j, scale[j] * g + slope[j] * deviation + rest[j])
            if with_add:
                _store(d_add, r, j, g)

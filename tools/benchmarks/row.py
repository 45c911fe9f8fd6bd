"""Benchmark row: time or rate, peer, ratio."""

from __future__ import annotations

from typing import TypedDict


class Row(TypedDict):
    """One line of the benchmark results.

    A line of ``bench.json``.

    ``ratio`` over 1 means that ours is better, ``bar`` is what it must reach.
    """

    name: str
    unit: str
    ours: float
    peer_name: str
    peer: float
    ratio: float
    bar: float | None

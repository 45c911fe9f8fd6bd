"""The figures of ``tools/bench.py projection`` come out with the keys of ``bench.json``."""

from __future__ import annotations

import pytest

from clipsweep.tools.benchmarks import projection


@pytest.mark.slow
def test_rows_of_a_real_sample(samples, monkeypatch):
    monkeypatch.setattr(projection, "SAMPLES", ("nuscenes-0523", "not-there"))
    rows = list(projection.rows(samples, seconds=0.0))
    for row in rows:
        assert set(row) == {"name", "unit", "ours", "peer_name", "peer", "ratio", "bar"}
    *raced, fused = rows
    assert [row["bar"] for row in raced] == [60, None, 4, 10, 1]
    assert min(row["ratio"] for row in raced) > 1
    assert fused["name"] == "nuscenes-0523: fuse a key frame (12 of a scene)"
    assert fused["ratio"] == 30 / fused["ours"]

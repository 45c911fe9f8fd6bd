"""The published way, written for the measurement, computes what our reading of it computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipsweep.distill.objectives.spatiotemporal import SpatioTemporalConfig, spatiotemporal
from clipsweep.tools.benchmarks import training


def test_the_dense_packing_is_the_reference() -> None:
    random = torch.Generator().manual_seed(0)
    local, pixel, text = (
        F.normalize(torch.randn(80, 5, generator=random), dim=1) for _ in range(3)
    )
    voxel = torch.cat(
        [
            torch.arange(6),
            torch.zeros(12, dtype=torch.int64),
            torch.randint(0, 6, (62,), generator=random),
        ]
    )
    ours = spatiotemporal(local, local, pixel, text, voxel, SpatioTemporalConfig(kind="reference"))
    torch.testing.assert_close(training._dense(local, pixel, text, voxel), ours)


@pytest.mark.slow
def test_rows_of_the_real_frames(samples: Path) -> None:
    inputs, hashing, memory = training.rows(samples, rounds=1)
    assert inputs["ratio"] > 5
    assert hashing["ratio"] > 5
    assert memory["ratio"] > memory["bar"]

"""The benchmark of labelling runs and reports in the common form."""

from __future__ import annotations

import pytest

from pipeline.bench.teacher import rows
from tests.distill.tiny_clip import one_thread

__all__ = ["one_thread"]  # a fixture for every test here


def test_rows_compare_labelling_with_the_bare_encoder() -> None:
    (row,) = rows("ViT-S-32-alt", (64, 96), batch=1, rounds=1, readings=("naclip",))
    assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
    assert row["bar"] == 0.95
    assert row["unit"] == "images/s"

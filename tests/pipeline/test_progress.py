"""Progress bars: the place of a stage in the run, rate and remaining time."""

from __future__ import annotations

import pytest

from clipsweep.pipeline.run.progress import planned, progress_bar


def drawn(stage: str, capsys: pytest.CaptureFixture[str]) -> str:
    with progress_bar(stage, 4, 1, "shard", show=True) as bar:
        bar.update(3)
    return capsys.readouterr().err


def test_a_stage_shows_its_place_in_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with planned(["pixels", "points", "train", "points", "train"]):
        assert drawn("pixels", capsys).startswith("\r1/5 pixels: ")
        with planned(["train"]):  # of a part of the run
            assert drawn("train", capsys).startswith("\r3/5 train: ")
        assert drawn("points", capsys).startswith("\r4/5 points: ")
        assert drawn("poses", capsys).startswith("\rposes: ")
        assert drawn("train", capsys).startswith("\r5/5 train: ")
        assert drawn("train", capsys).startswith("\rtrain: ")
    assert drawn("pixels", capsys).startswith("\rpixels: ")


def test_a_bar_shows_what_is_there_and_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    first, *_, last = drawn("points", capsys).split("\r")[1:]
    assert "1/4" in first
    assert "4/4" in last
    assert "shard/s" in last or "s/shard" in last


def test_a_bar_may_be_off(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("points", 4, 0, "shard", show=False) as bar:
        bar.update(4)
    assert capsys.readouterr().err == ""

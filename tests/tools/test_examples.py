"""The numbered examples run on the small demo world, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, settings

EXAMPLES = ROOT / "tools/examples"


def run(example: str, *arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_the_examples_run_one_after_the_other(small_world: Path, tmp_path: Path) -> None:
    given = settings(small_world, tmp_path / "store")
    projected = run("1_project.py", *given)
    assert projected.count(" points seen") == 6
    labelled = run("2_label.py", *given).splitlines()
    assert len(labelled) == 3
    assert all("driveable surface" in line for line in labelled)
    trained = run("3_train.py", *given)
    assert ": loss " in trained
    sweep = next((small_world / "samples/LIDAR_TOP").iterdir())
    predicted = run("4_predict.py", trained.split(": loss ")[0], str(sweep))
    assert " points\n" in predicted


def test_each_example_is_short() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert [path.name[0] for path in files] == ["1", "2", "3", "4"]
    assert all(len(path.read_text().splitlines()) < 40 for path in files)

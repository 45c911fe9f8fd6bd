"""Whole runs: real sensors from raw files to scores, the demo from nothing, and a labelling that
is killed.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import DemoConfig
from clipsweep.pipeline.demo.write import write_demo
from tests.helpers import ROOT, Run, settings

QUIET = ("run.progress=false", "teacher.kind=precomputed")


@pytest.mark.slow
def test_real_sensors_with_labels(samples: Path, tmp_path: Path, tool: Run) -> None:
    given = (
        f"{ROOT}/tests/configs/pandaset.yaml",
        "pretrain/quick",
        *QUIET,
        f"store={tmp_path}",
    )
    points = tool("label", *given).path
    six = (f"labels.eval={ROOT}/tests/configs/merged6.yaml", "data.eval=mini_train,mini_val")
    fused = json.loads(
        (tool("evaluate", *given, f"pseudo_labels={points}", *six).path / "scores.json").read_text()
    )
    assert fused["covered"]["accuracy"] > 0.92
    assert fused["covered"]["miou"] > 0.68
    assert fused["covered"]["points"] > 790_000

    def score(student: Path) -> dict:
        return json.loads(
            (tool("evaluate", *given, f"student={student}").path / "scores.json").read_text()
        )

    untrained = score(tool("pretrain", *given, "train.epochs=0").path)
    trained = score(tool("pretrain", *given, "train.epochs=8", "train.batch_size=1").path)
    assert trained["miou"] > untrained["miou"] + 0.15
    assert trained["accuracy"] > 0.75
    assert list(trained["iou"])[:2] == ["barrier", "bicycle"]
    assert len(trained["iou"]) == 16


@pytest.mark.slow
def test_real_sensors_with_one_grey_camera(samples: Path, tmp_path: Path, tool: Run) -> None:
    given = (
        f"{ROOT}/tests/configs/semantickitti.yaml",
        "pretrain/quick",
        *QUIET,
        f"store={tmp_path}",
    )
    points = tool("label", *given).path
    fused = json.loads(
        (tool("evaluate", *given, f"pseudo_labels={points}").path / "scores.json").read_text()
    )
    assert fused["frames"] == 2
    # ahead, what was before, and around it
    assert 0.18 < fused["covered"]["points"] / fused["points"] < 0.24
    assert fused["covered"]["accuracy"] > 0.57
    assert fused["accuracy"] > 0.125  # of all points; .119 when fewer points had labels
    student = tool("pretrain", *given, "train.epochs=1", "model.voxel_m=0.4").path
    out = tool("export_labels", *given, f"student={student}").path
    scans = sorted((samples / "semantickitti/sequences/00/velodyne").iterdir())
    found = sorted((out / "sequences/00/predictions").iterdir())
    assert [path.stem for path in found] == [path.stem for path in scans]
    assert all(
        4 * file.stat().st_size == scan.stat().st_size
        for file, scan in zip(found, scans, strict=True)
    )


@pytest.mark.slow
def test_real_sensors_without_labels(samples: Path, tmp_path: Path, tool: Run) -> None:
    given = (
        f"{ROOT}/tests/configs/nuscenes.yaml",
        "pretrain/quick",
        *QUIET,
        f"store={tmp_path}",
    )
    student = tool("pretrain", *given, "train.epochs=1", "train.batch_size=4").path
    out = tool("export_labels", *given, f"student={student}").path
    found = sorted(out.rglob("*_lidarseg.bin"))
    sizes = {
        path.stat().st_size // 20
        for path in (samples / "nuscenes-0523/samples/LIDAR_TOP").glob("*.bin")
    }
    assert len(found) == 12
    for path in found:
        label = np.fromfile(path, np.uint8)
        assert len(label) in sizes
        assert set(np.unique(label)) <= set(range(1, 17))
    refused = tool("evaluate", *given, f"student={student}")
    assert refused.status == 1
    assert "no frame has labels" in refused.err


@pytest.mark.slow
def test_a_killed_labelling_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_demo(
        DemoConfig(train_scenes=6, val_scenes=1, key_frames=2, width_px=320, height_px=180), root
    )
    teacher = (
        "teacher.kind=maskclip",
        "teacher.maskclip.model=local-dir:pipeline/demo/teacher",
        "teacher.maskclip.size_hw=[160,320]",
    )

    def command(store: Path) -> list[str]:
        tool = [sys.executable, f"{ROOT}/tools/label.py"]
        return [*tool, *settings(root, store), *teacher, "labels.prompts=demo"]

    undisturbed = subprocess.run(
        command(tmp_path / "a"), check=True, capture_output=True, text=True
    ).stdout.strip()
    victim = subprocess.Popen(command(tmp_path / "b"), stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not list((tmp_path / "b").glob("pixels-*/done/scene-*.json")):
        assert time.time() < deadline
        assert victim.poll() is None
        time.sleep(0.005)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not list((tmp_path / "b").glob("points-*/manifest.json"))
    again = subprocess.run(
        command(tmp_path / "b"), check=True, capture_output=True, text=True
    ).stdout.strip()
    for stage in ("pixels", "points"):
        one, two = (next((tmp_path / store).glob(f"{stage}-*")) for store in "ab")
        assert one.name == two.name
        assert Artifact(one).manifest()["digest"] == Artifact(two).manifest()["digest"]
    assert Path(again).name == Path(undisturbed).name


@pytest.mark.slow
def test_the_demo_from_nothing_to_a_table(tmp_path: Path) -> None:
    small = ("demo.train_scenes=2", "demo.val_scenes=1", "demo.key_frames=3", "train.epochs=2")
    mini = ("data.nuscenes.version=v1.0-mini", "data.train=mini_train", "data.eval=mini_val")
    where = (f"data.root={tmp_path / 'data'}", f"store={tmp_path / 'store'}", "run.progress=false")
    command = [sys.executable, f"{ROOT}/tools/pretrain.py", "demo", *small, *mini, *where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Artifact(Path(done.stdout.strip())).whole
    assert "mIoU" in done.stderr
    assert "construction vehicle" in done.stderr
    report = next((tmp_path / "store").glob("report-*.html"))
    assert str(report) in done.stderr
    assert "Where it fails" in report.read_text()

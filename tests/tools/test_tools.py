"""The tools on a small world: what they make, what they print, and that nothing is done twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from clipsweep.distill.student.checkpoint import load_student, make_student
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.cli import argument_names, without
from clipsweep.pipeline.config import load_config
from clipsweep.tools import arguments_of, pretrain
from tests.helpers import ROOT, Run, settings


def test_from_logs_to_a_scored_student_and_its_export(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(small_world, tmp_path / "store")
    student = tool("pretrain", *given).path
    assert student.name.startswith("student-")
    stages = sorted(path.name.split("-")[0] for path in (tmp_path / "store").glob("*-*"))
    assert stages == ["index", "pixels", "points", "poses", "student"]
    assert {"config.json", "model.safetensors", "metrics.jsonl"} <= {
        path.name for path in student.iterdir()
    }

    scored = tool("evaluate", *given, f"student={student}")
    assert "driveable surface" in scored.err
    scores = json.loads((scored.path / "scores.json").read_text())
    assert scores["frames"] == 3
    assert scores["class_priors"] is False  # its targets are single pixels
    assert 0 <= scores["miou"] <= 1
    assert np.sum(scores["confusion"]) == scores["points"]
    assert scores["trained_on_eval"] is False
    assert "trained on" not in scored.err
    scored = tool("evaluate", *given, f"student={student}", "data.eval=scene-0061")
    assert json.loads((scored.path / "scores.json").read_text())["trained_on_eval"] is True
    assert "annotation-free, trained on scenes of this split, scene-0061" in scored.err
    assert scored.err.count("warning: the student was trained on scenes of data.eval") == 1

    out = tool("export_labels", *given, f"student={student}", f"out={tmp_path / 'export'}").path
    bins = sorted(out.glob("lidarseg/mini_val/*_lidarseg.bin"))
    assert len(bins) == 3
    for path in bins:
        label = np.fromfile(path, np.uint8)
        truth = np.fromfile(small_world / "lidarseg/v1.0-mini" / path.name, np.uint8)
        assert label.size == truth.size
        assert label.min() >= 1
        assert label.max() <= 16
    assert json.loads((out / "mini_val/submission.json").read_text())["meta"]["use_lidar"] is True


def test_a_teacher_without_words_teaches_the_local_head(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    vit = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), vit)
    given = (
        "pretrain/scalr",
        *settings(small_world, tmp_path / "store"),
        "teacher.kind=features",
    )
    student = tool(
        "pretrain", *given, "teacher.features.model=test_vit", f"teacher.features.weights={vit}"
    ).path
    for line in (student / "metrics.jsonl").read_text().splitlines():
        step = json.loads(line)
        assert 0 < step["loss"] < 2
        assert step["points"] > 1000
    trained = load_student(student)
    torch.manual_seed(0)
    untrained = make_student(trained.model, 64)
    assert trained.text.shape == (0, 64)
    assert not torch.equal(trained.student.local.weight, untrained.local.weight)
    assert torch.equal(trained.student.semantic.weight, untrained.semantic.weight)


def test_fused_labels_are_scored_and_exported(small_world: Path, tmp_path: Path, tool: Run) -> None:
    given = settings(small_world, tmp_path / "store")
    points = tool("label", *given).path
    scored = tool(
        "evaluate",
        *given,
        f"pseudo_labels={points}",
        f"labels.eval={ROOT}/tests/configs/merged6.yaml",
    )
    scores = json.loads((scored.path / "scores.json").read_text())
    assert scores["covered"]["points"] < scores["points"]
    assert scores["covered"]["iou"]["driveable"] > 0.3
    assert scores["class_priors"] is True
    assert "class priors set by hand" in scored.err
    without = tool("label", *given, "fusion.limits=false").path
    assert without != points
    scored = tool("evaluate", *given, f"pseudo_labels={without}")
    assert json.loads((scored.path / "scores.json").read_text())["class_priors"] is False
    assert "class priors" not in scored.err
    out = tool("export_labels", *given, f"pseudo_labels={points}", f"out={tmp_path / 'out'}").path
    assert not list(out.rglob("submission.json"))
    path = next(out.rglob("*.bin"))
    label = np.fromfile(path, np.uint8)
    beside = np.load(path.with_suffix(".npz"))
    assert set(np.unique(label)) == {0, 11, 15}
    assert (beside["score"][label == 0] == 0).all()
    again = tool("export_labels", *given, f"pseudo_labels={points}", f"out={out}")
    assert again.status == 1
    assert "exists already" in again.err


def test_a_picture_is_drawn(small_world: Path, tmp_path: Path, tool: Run) -> None:
    given = settings(small_world, tmp_path / "store")
    points = tool("label", *given).path
    picture = tool("view", *given, f"pseudo_labels={points}", f"out={tmp_path / 'view.png'}").path
    assert picture.stat().st_size > 50_000
    assert tool("view", *given, f"pseudo_labels={points}", "frame=nowhere").status == 1


@pytest.mark.parametrize("name", ["index", "label", "pretrain"])
def test_twice_is_once(small_world: Path, tmp_path: Path, tool: Run, name: str) -> None:
    given = settings(small_world, tmp_path / "store")
    first = tool(name, *given).path
    files = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()
    }
    assert tool(name, *given).path == first
    assert files == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()
    }


def test_place_of_data_and_store_do_not_change_names(
    small_world: Path, world: Path, tmp_path: Path, tool: Run
) -> None:
    one = tool("label", *settings(small_world, tmp_path / "a")).path
    two = tool("label", *settings(world, tmp_path / "b")).path
    assert one.name == two.name
    assert Artifact(one).manifest()["digest"] == Artifact(two).manifest()["digest"]


def test_training_goes_on_where_it_stopped(small_world: Path, tmp_path: Path, tool: Run) -> None:
    given = [*settings(small_world, tmp_path / "store"), "train.epochs=4", "run.checkpoint_s=0"]
    whole = tool("pretrain", *given).path
    halted = tmp_path / "halted"
    with pytest.MonkeyPatch.context() as patch:
        from clipsweep.pipeline.stages import log

        def stop(self: log.TrainingLog, step: object) -> None:
            if step.step == 4:  # type: ignore[attr-defined]
                raise KeyboardInterrupt
            kept(self, step)

        kept = log.TrainingLog.__call__
        patch.setattr(log.TrainingLog, "__call__", stop)
        interrupted = tool("pretrain", *given, f"store={halted}")
        assert interrupted.status == 130
    resumed = tool("pretrain", *given, f"store={halted}").path
    assert (resumed / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()
    steps = [
        json.loads(line)["step"] for line in (resumed / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, len(steps) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_training_with_a_checkpoint(
    small_world: Path, tmp_path: Path, tool: Run, number: signal.Signals
) -> None:
    given = [
        *settings(small_world, tmp_path / "store"),
        "train.epochs=12",
        "train.ema=0.9",
        "run.loaders=1",
    ]
    tool("label", *given)
    shutil.copytree(tmp_path / "store", tmp_path / "halted")
    command = [sys.executable, f"{ROOT}/tools/pretrain.py", *given, f"store={tmp_path / 'halted'}"]
    # on some processors products of two threads differ from those of one, as this process has
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=one_thread
    )
    deadline = time.monotonic() + 120
    while not any(
        path.stat().st_size for path in (tmp_path / "halted").glob("student-*/metrics.jsonl")
    ):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    os.killpg(child.pid, number)  # as a terminal and a batch system do: the loader receives it too
    _, output = child.communicate(timeout=60)
    assert child.returncode == 128 + number
    assert f"by {number.name}; run the same command again to go on" in output
    halted = next((tmp_path / "halted").glob("student-*"))
    assert (halted / "state.safetensors").exists()
    assert not (halted / "manifest.json").exists()
    resumed = tool("pretrain", *given, f"store={tmp_path / 'halted'}").path
    whole = tool("pretrain", *given).path
    assert (resumed / "model.safetensors").read_bytes() == (
        whole / "model.safetensors"
    ).read_bytes()
    steps = [
        json.loads(line)["step"] for line in (resumed / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 19))


@pytest.mark.slow
def test_a_signal_leaves_no_half_a_world_behind(tmp_path: Path) -> None:
    command = [
        sys.executable,
        f"{ROOT}/tools/demo.py",
        "demo.train_scenes=8",
        f"out={tmp_path / 'world'}",
    ]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(tmp_path.rglob("*.jpg")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.terminate()
    _, output = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in output
    assert not list(tmp_path.iterdir())


def test_resume_starts_from_another_student(small_world: Path, tmp_path: Path, tool: Run) -> None:
    given = settings(small_world, tmp_path / "store")
    first = tool("pretrain", *given).path
    longer = tool("pretrain", *given, "train.epochs=2", f"resume={first}").path
    assert longer != first
    steps = [
        json.loads(line)["step"] for line in (longer / "metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [3]  # 3 frames by 2 fill 2 steps an epoch, 3 in two


def test_a_student_of_other_classes_is_refused(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(small_world, tmp_path / "store")
    student = tool("pretrain", *given).path
    refused = tool("evaluate", *given, f"student={student}", "labels.names=cat,dog")
    assert refused.status == 1
    assert "has the classes" in refused.err


class Child:
    """A process that has ended well at once."""

    returncode = 0

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def poll(self) -> int:
        return 0


def test_children_of_a_training_get_only_what_they_accept(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def popen(command: list[str], **_: object) -> Child:
        commands.append(command)
        return Child()

    given = ["pretrain.py", "demo", "resume=other", "seed=1", "--traceback"]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(pretrain.subprocess, "Popen", popen)
    pretrain._show(Path("made"))
    expected = ["demo", "seed=1", "--traceback", "student=made"]
    assert [command[2:] for command in commands] == [expected, expected]
    for name, command in zip(("evaluate", "report"), commands, strict=True):
        assert Path(command[1]).name == f"{name}.py"
        own = argument_names(arguments_of(name))
        settings = [each for each in command[2:] if not each.startswith("--")]
        load_config(without(own, settings), own)


def test_an_argument_of_another_tool_is_refused(tool: Run) -> None:
    refused = tool("index", "student=made")
    assert refused.status == 1
    assert "unknown key student" in refused.err


def test_usage(tool: Run) -> None:
    shown = tool("label", "--help")
    assert shown.status == 0
    assert "fusion.cell_m=" in shown.out
    assert tool("label", "--fast").status == 2
    assert tool("evaluate", "student=").status == 1


def test_the_training_names_the_student(small_world: Path, tmp_path: Path, tool: Run) -> None:
    given = settings(small_world, tmp_path / "store")
    plain = tool("pretrain", *given).path
    assert tool("pretrain", *given, "objectives.selftraining.probability=0.5").path != plain
    assert tool("pretrain", *given, f"resume={plain}").status == 1  # nothing is left to train
    refused = tool("pretrain", *given, "train.epochs=2", "train.optimizer=sgd", f"resume={plain}")
    assert refused.status == 1
    assert "AdamW" in refused.err


def test_a_swapped_or_damaged_file_in_the_store_is_named(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(small_world, tmp_path / "store")
    student = tool("pretrain", *given).path
    weights = student / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + b"\x01")
    swapped = tool("evaluate", *given, f"student={student}")
    assert swapped.status == 1
    assert "is not the file that training wrote" in swapped.err
    weights.write_bytes(kept)
    (student / "manifest.json").write_text("{")
    damaged = tool("evaluate", *given, f"student={student}")
    assert damaged.status == 1
    assert "manifest.json" in damaged.err


def test_a_token_cannot_lead_an_export_astray(world: Path, tmp_path: Path, tool: Run) -> None:
    path = world / "v1.0-mini/sample_data.json"
    rows = json.loads(path.read_text())
    token = next(row["token"] for row in rows if row["filename"].startswith("samples/LIDAR_TOP"))
    for table in (path, path.with_name("lidarseg.json")):
        table.write_text(table.read_text().replace(token, f"../../{token}"))
    failed = tool("index", *settings(world, tmp_path / "store"))
    assert failed.status == 1
    assert "cannot name a file" in failed.err

"""What a command needs is checked before it does anything."""

from __future__ import annotations

import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.run.ready import check_ready
from clipsweep.projection.errors import BadInput
from tests.helpers import Run, settings


def refused(match: str, *arguments: str) -> None:
    with pytest.raises(BadInput, match=match):
        check_ready(load_config(list(arguments)))


def test_usual_settings_pass(tmp_path: Path) -> None:
    check_ready(load_config([f"store={tmp_path / 'not' / 'yet'}"]))


def test_several_workers_need_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(r"run\.workers: is 2 with run\.executor=local; give run\.executor=ray", "run.workers=2")
    check_ready(load_config(["run.workers=2", "run.executor=ray"]))
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    check_ready(load_config(["run.workers=2"]))
    monkeypatch.setitem(sys.modules, "ray", None)
    refused(r"run\.executor: is ray, which is not installed; pip install", "run.executor=ray")


def test_the_store_must_be_writable_and_have_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    refused("cannot be written; give a folder", f"store={tmp_path / 'file' / 'store'}")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 3 << 20))
    refused("its disk has 3 MiB left", f"store={tmp_path}")


def test_a_gpu_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_ready(load_config(["run.gpus=0.5"]))
    refused(r"run\.gpus: is 2, this machine has 1 that CUDA finds; give run\.gpus=0", "run.gpus=2")
    check_ready(load_config(["run.gpus=2", "run.address=head:6379"]))


def test_the_label_space_must_be_whole(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("classes: []")
    refused("needs `classes`", f"labels.space={space}")


def test_nothing_is_predicted_that_cannot_be_scored(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    given = settings(small_world, tmp_path / "store")
    student = tool("pretrain", *given, "train.epochs=0").path
    done = tool("evaluate", *given, f"student={student}", "labels.truth=semantickitti19")
    assert done.status == 1
    assert "give labels.eval too" in done.err
    assert not list((tmp_path / "store").glob("predictions-*"))


def test_an_export_looks_for_its_folder_first(small_world: Path, tmp_path: Path, tool: Run) -> None:
    given = settings(small_world, tmp_path / "store")
    student = tool("pretrain", *given, "train.epochs=0").path
    done = tool("export_labels", *given, f"student={student}", f"out={tmp_path}")
    assert done.status == 1
    assert "exists already; delete it" in done.err
    assert not list((tmp_path / "store").glob("predictions-*"))


def test_images_that_no_memory_holds_are_refused_before_anything_is_read(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    given = [
        *settings(small_world, tmp_path / "store"),
        "teacher.kind=maskclip",
        "teacher.maskclip.size_hw=[100000,100000]",
    ]
    done = tool("label", *given)
    assert done.status == 1
    assert done.err.startswith("error: teacher.maskclip.size_hw: 16 images of 100000 x 100000 need")
    assert done.err.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_names_from_files_do_not_reach_the_terminal_raw() -> None:
    error = BadInput("\x1b[2Jscene\n", "is \x07 wrong")
    assert str(error) == "\\x1b[2Jscene\\n: is \\x07 wrong"

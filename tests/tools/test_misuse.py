"""Artifacts of one kind given for another, files changed behind the tools' back, and runs that
made nothing.
"""

from __future__ import annotations

import importlib
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from clipsweep.pipeline.yaml_files import CONFIGS
from tests.helpers import LABELS_HW, Run, settings


@pytest.fixture
def given(small_world: Path, tmp_path: Path) -> list[str]:
    return settings(small_world, tmp_path / "store")


def test_points_of_other_names_are_not_scored(given: list[str], tool: Run, tmp_path: Path) -> None:
    points = tool("label", *given).path
    names = "labels.names=vegetation,car"
    for name, more in (
        ("evaluate", ()),
        ("export_labels", ()),
        ("view", (f"out={tmp_path / 'a.png'}",)),
    ):
        refused = tool(name, *given, names, f"pseudo_labels={points}", *more)
        assert refused.status == 1
        assert "has the classes barrier, bicycle, bus" in refused.err


def test_points_whose_classes_stand_in_another_order_are_not_scored(
    given: list[str], tool: Run, tmp_path: Path
) -> None:
    points = tool("label", *given).path
    space = yaml.safe_load((CONFIGS / "labels/nuscenes16.yaml").read_text())
    space["classes"] = [*space["classes"][1:], space["classes"][0]]
    (tmp_path / "turned.yaml").write_text(yaml.safe_dump(space))
    turned = tool(
        "evaluate", *given, f"labels.space={tmp_path / 'turned.yaml'}", f"pseudo_labels={points}"
    )
    assert (turned.status, turned.out) == (1, "")
    assert "labels has bicycle, bus" in turned.err
    (tmp_path / "same.yaml").write_text((CONFIGS / "labels/nuscenes16.yaml").read_text())
    assert (
        tool(
            "evaluate", *given, f"labels.space={tmp_path / 'same.yaml'}", f"pseudo_labels={points}"
        ).status
        == 0
    )


@pytest.mark.parametrize("name", ["evaluate", "view", "export_labels"])
def test_a_student_and_points_at_once_are_refused(given: list[str], tool: Run, name: str) -> None:
    refused = tool(name, *given, "student=one", "pseudo_labels=other")
    assert refused.status == 1
    assert "pseudo_labels: is given, and student too; give one of them" in refused.err


def test_points_that_were_changed_are_not_read(given: list[str], tool: Run) -> None:
    points = tool("label", *given).path
    for shard in points.glob("scene-0103*.safetensors"):
        data = bytearray(shard.read_bytes())
        data[-1] ^= 1
        shard.write_bytes(data)
    refused = tool("evaluate", *given, f"pseudo_labels={points}")
    assert refused.status == 1
    assert "is damaged (it has another sha256 than when it was made)" in refused.err
    assert tool("label", *given, "verify=true").path == points
    assert tool("evaluate", *given, f"pseudo_labels={points}").status == 0


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "state.safetensors"])
def test_a_changed_student_is_not_taken_up(
    given: list[str], tool: Run, tmp_path: Path, file: str
) -> None:
    student = tool("pretrain", *given).path
    copy = Path(shutil.copytree(student, tmp_path / "copy" / student.name))
    data = bytearray((copy / file).read_bytes())
    data[-9] ^= 1
    (copy / file).write_bytes(data)
    runs = {"pretrain": (f"resume={copy}", "train.epochs=2")}
    if file != "state.safetensors":
        runs |= {
            "finetune": (f"student={copy}", "protocol=scene@100%"),
            "evaluate": (f"student={copy}",),
        }
    for name, more in runs.items():
        refused = tool(name, *given, *more)
        assert refused.status == 1, name
        assert f"{file}: is not the file that training wrote" in refused.err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finetune.linear_probe=true", "leaves random weights"),
        ("labels.names=car,truck", "no labels to train on"),
    ],
)
def test_fine_tuning_on_nothing_is_refused(
    given: list[str], tool: Run, setting: str, message: str
) -> None:
    refused = tool("finetune", *given, "student=none", "protocol=scene@100%", setting)
    assert refused.status == 1
    assert message in refused.err


def test_steps_that_were_left_out_are_reported(
    given: list[str], tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad step of two is reported; when all are bad there is no student."""
    # a function goes by the same name
    module = importlib.import_module("clipsweep.distill.objectives.semantic")
    honest = module.cross_entropy
    calls = iter(range(100))

    def sometimes(cosine, label, scale):  # type: ignore[no-untyped-def]
        value = honest(cosine, label, scale)
        return value * float("nan") if next(calls) % 2 == 0 else value

    monkeypatch.setattr(module, "cross_entropy", sometimes)
    made = tool("pretrain", *given, "train.max_bad_steps=9", "train.epochs=2")
    assert json.loads((made.path / "manifest.json").read_text())["bad_steps"] > 0
    assert "step(s) were left out" in made.err
    monkeypatch.setattr(module, "cross_entropy", lambda c, y, s: honest(c, y, s) * float("nan"))
    refused = tool("pretrain", *given, "train.max_bad_steps=9", "seed=1")
    assert refused.status == 1
    assert "steps were left out, because nothing was finite" in refused.err


def test_a_picture_that_cannot_be_is_refused_first(
    given: list[str], tool: Run, tmp_path: Path
) -> None:
    refused = tool("label", *given, f"report={tmp_path / 'x.xyz'}")
    assert refused.status == 1
    assert "is no name of a picture" in refused.err
    assert not (tmp_path / "store").exists()


def test_training_on_images_without_a_class_is_refused(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    ids = np.full(LABELS_HW, 255, np.uint8)
    ids[0, 0] = 2  # above all points
    for path in (world / "labels2d").rglob("*.png"):
        Image.fromarray(ids).save(path)
    for _ in range(2):  # the second finds the checkpoint of the first
        refused = tool("pretrain", *settings(world, tmp_path / "store"))
        assert (refused.status, refused.out) == (1, "")
        assert "no point of any frame has a target" in refused.err


def test_training_without_any_frame_is_refused(world: Path, tmp_path: Path, tool: Run) -> None:
    shutil.rmtree(world / "labels2d")
    refused = tool("pretrain", *settings(world, tmp_path / "store"), "on_bad=skip")
    assert (refused.status, refused.out) == (1, "")
    assert "all frames were left out, first: " in refused.err


def test_labels_once_used_are_not_hidden_behind_a_smaller_protocol(
    given: list[str], tool: Run
) -> None:
    student = tool("finetune", *given, "student=none", "protocol=scene@100%").path
    refused = tool("finetune", *given, f"student={student}", "protocol=frame@1%")
    assert refused.status == 1
    assert "was trained on labels already" in refused.err
    points = tool("label", *given, f"student={student}").path
    start = tool("pretrain", *given).path
    for source in (start, "none"):
        tune = [*given, f"student={source}", "protocol=scene@1%", f"pseudo_labels={points}"]
        refused = tool("finetune", *tune)
        assert refused.status == 1
        assert "trained on labels (scene@100%)" in refused.err


def test_a_student_that_is_none_is_refused_before_labelling(
    given: list[str], tmp_path: Path, tool: Run
) -> None:
    refused = tool("label", *given, "student=/nowhere", f"store={tmp_path / 'fresh'}")
    assert refused.status == 1
    assert "is no finished student" in refused.err
    assert not list(tmp_path.glob("fresh/pixels-*"))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (("teacher.kind=maskclip", "objectives.regression.weight=1"), "keep_features"),
        (("teacher.kind=features", "teacher.features.model=test_vit"), "has no classes"),
        (("objectives.regression.weight=1", "objectives.semantic.targets=points"), "no pixels"),
    ],
)
def test_objectives_that_the_teacher_cannot_serve_are_refused(
    given: list[str], tool: Run, wanted: tuple[str, ...], message: str
) -> None:
    refused = tool("pretrain", *given, *wanted)
    assert refused.status == 1
    assert message in refused.err


def test_no_frame_makes_no_submission(given: list[str], tool: Run, tmp_path: Path) -> None:
    student = tool("pretrain", *given).path
    refused = tool(
        "export_labels", *given, f"student={student}", "data.eval=[]", f"out={tmp_path / 'out'}"
    )
    assert refused.status == 1
    assert "has no frame to export" in refused.err
    assert not list(tmp_path.glob("*out*"))


def test_an_export_into_the_data_root_is_refused(
    given: list[str], tool: Run, small_world: Path
) -> None:
    out = small_world / "lidarseg/new"
    refused = tool("export_labels", *given, "student=one", f"out={out}")
    assert (refused.status, out.exists()) == (1, False)
    assert f"out: {out} lies in data.root; give a folder outside of it" in refused.err


def test_data_without_label_files_are_scored_against_boxes(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    (world / "v1.0-mini/lidarseg.json").unlink()
    given = settings(world, tmp_path / "store")
    points = tool("label", *given).path
    refused = tool("evaluate", *given, f"pseudo_labels={points}")
    assert "score against annotated 3D boxes with labels.truth=boxes" in refused.err
    none = ("student=none", "finetune.unlabelled=none")
    refused = tool("finetune", *given, *none)
    assert "3D boxes are for evaluate alone (labels.truth=boxes)" in refused.err


def test_a_split_that_is_not_there_is_refused_where_it_is_used(
    small_world: Path, tmp_path: Path, tool: Run
) -> None:
    """The data root holds scene-0061 and scene-0103, neither of them in the split ``test``."""
    given = settings(small_world, tmp_path / "store")
    refused = tool("index", *given, "data.train=test", "data.eval=test")
    assert refused.status == 1
    held = "it holds scene-0061, scene-0103: set data.train=scene-0061 (and data.eval)"
    assert f"v1.0-mini: has no scene of 'test'; {held}" in refused.err
    no_train = [*given, "data.train=test"]
    points = tool("label", *no_train)
    assert "data.train: 0 of 150 scenes of 'test' are there" in points.err
    assert tool("evaluate", *no_train, f"pseudo_labels={points.path}").status == 0
    for name, more in (("pretrain", ()), ("finetune", ("student=none",))):
        refused = tool(name, *no_train, "finetune.unlabelled=none", *more)
        assert refused.status == 1
        held = "it holds scene-0103: set data.train=scene-0103"
        assert f"has no scene of 'test'; {held}" in refused.err
    refused = tool("evaluate", *given, "data.eval=test", f"pseudo_labels={points.path}")
    assert refused.status == 1
    assert "it holds scene-0061: set data.eval=scene-0061" in refused.err
    refused = tool("pretrain", *given, "data.eval=test", "evaluate=true")
    assert "set data.eval=scene-0061" in refused.err


def test_a_signal_is_taken_for_no_bad_file(
    given: list[str], tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come while somebody waits for errors.

    Then the frame was left out, and the run went on.
    """
    resolve = Path.resolve
    struck = []

    def resolve_under_fire(path: Path, strict: bool = False) -> Path:
        if path.suffix == ".bin" and not struck:
            struck.append(path)
            signal.raise_signal(signal.SIGTERM)
        return resolve(path, strict)

    monkeypatch.setattr(Path, "resolve", resolve_under_fire)
    stopped = tool("index", *given, "on_bad=skip")
    assert struck
    assert (stopped.status, stopped.out) == (128 + signal.SIGTERM, "")
    assert "stopped by SIGTERM" in stopped.err


def test_points_that_do_not_cover_a_scene_are_named(given: list[str], tool: Run) -> None:
    points = tool("label", *given, "data.eval=mini_train").path
    refused = tool("evaluate", *given, f"pseudo_labels={points}")
    assert refused.status == 1
    assert "does not cover scene-0103" in refused.err


def test_the_reason_why_nothing_is_scored_is_reported(
    world: Path, tmp_path: Path, tool: Run
) -> None:
    given = [*settings(world, tmp_path / "store"), "on_bad=skip"]
    points = tool("label", *given).path
    for path in (world / "lidarseg/v1.0-mini").glob("*.bin"):
        path.write_bytes(b"\x63" * path.stat().st_size)
    refused = tool("evaluate", *given, f"pseudo_labels={points}")
    assert refused.status == 1
    assert "all frames were left out, first: " in refused.err
    report = tool("label", *given, f"report={tmp_path / 'report.png'}")
    assert report.status == 0
    assert "goes without truth" in report.err


@pytest.mark.parametrize(
    ("name", "arguments", "problem"),
    [
        ("status", ["store="], "store: is '' (command line); it must be a text of at least 1"),
        ("export_labels", ["format=ply", "voxel_m=0.2"], "voxel_m: is given without merge=true"),
    ],
)
def test_a_setting_without_effect_is_refused(
    given: list[str], tool: Run, name: str, arguments: list[str], problem: str
) -> None:
    chosen = given if name != "status" else []
    refused = tool(name, *chosen, *arguments)
    assert (refused.status, refused.out) == (1, "")
    assert problem in refused.err

"""Configuration: merging, includes, and messages about wrong keys and values."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from clipsweep.distill.teacher.maskclip import MaskClipConfig
from clipsweep.pipeline.config import Config, describe, load_arguments, load_config
from clipsweep.pipeline.datasets import DATASETS
from clipsweep.pipeline.datasets.nuscenes import NuscenesConfig
from clipsweep.pipeline.datasets.semantickitti import SemanticKittiConfig
from clipsweep.pipeline.settings import plain
from clipsweep.pipeline.teachers import TEACHERS, TeacherKind
from clipsweep.pipeline.yaml_files import CONFIGS
from clipsweep.projection.errors import BadInput


def test_files_merge_left_to_right_then_pairs(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {root: /a, columns: 4}\nseed: 1\n")
    (tmp_path / "b.yaml").write_text("data: {root: /b}\n")
    config = load_config(["seed=7", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])
    assert (config.data.root, config.data.columns, config.seed) == ("/b", 4, 7)


def test_includes_are_relative_and_come_first(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/base.yaml").write_text("train: {epochs: 3, lr: 0.5}\n")
    (tmp_path / "top.yaml").write_text("include: [sub/base.yaml]\ntrain: {lr: 0.1}\n")
    config = load_config([str(tmp_path / "top.yaml")])
    assert (config.train.epochs, config.train.lr) == (3, 0.1)


def test_lists_may_be_typed_with_commas() -> None:
    assert load_config(["data.train=mini_train, scene-0061"]).data.train == (
        "mini_train",
        "scene-0061",
    )
    assert load_config(["data.train=[a,b]"]).data.train == ("a", "b")
    assert load_config(["data.train=10"]).data.train == ("10",)
    assert load_config(["data.train=['010', \"no\" ,]"]).data.train == ("010", "no")
    own = load_config(["teacher.maskclip.size_hw=[224, 416]"]).teacher.own
    assert isinstance(own, MaskClipConfig)
    assert own.size_hw == (224, 416)


@pytest.mark.parametrize(
    "text", ["12:30", "0012", "no", "2020-13-45", "[car,truck]", "1e3", "null", "{a: b}", "a=b"]
)
def test_a_text_is_what_was_typed(text: str) -> None:
    assert load_config([f"store={text}"]).store == text
    assert load_config(["data.train=010"]).data.train == ("010",)


def test_a_number_in_a_file_may_stand_for_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {train: [7, a], eval: 8}\nstore: 12\nprotocol:\n")
    config = load_config([str(tmp_path / "a.yaml")])
    assert (config.data.train, config.data.eval, config.store, config.protocol) == (
        ("7", "a"),
        ("8",),
        "12",
        "",
    )


NUMBERS = [s for s in describe() if re.fullmatch(r"-?[\d.]+(e[+-]?\d+)?", s.default)]


def test_every_number_has_bounds() -> None:
    assert len(NUMBERS) > 70
    assert [s.name for s in NUMBERS if " from " not in s.allowed] == []
    assert [s.name for s in NUMBERS if "e+09" in s.allowed] == []  # nobody meets it


@pytest.mark.parametrize("key", [s.name for s in NUMBERS])
@pytest.mark.parametrize("text", ["nan", "true", "1e10", "-1e10"])
def test_no_number_is_none_or_out_of_bounds(key: str, text: str) -> None:
    with pytest.raises(BadInput, match=f"{re.escape(key)}: is .*{text}.*; it must be a"):
        load_config([f"{key}={text}"])


def test_a_number_in_a_file_is_no_truth_value(tmp_path: Path) -> None:
    for text in ("train: {epochs: true}", "train: {epochs: 1.5}", "train: {lr: no}"):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(BadInput, match=r"train\..*: is .*a\.yaml\); it must be a"):
            load_config([str(tmp_path / "a.yaml")])


def test_a_wrong_value_is_named_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("train: {batch_size: 0}\n")
    with pytest.raises(BadInput) as caught:
        load_config([str(tmp_path / "a.yaml")])
    bound = "it must be a whole number from 1 to 128"
    assert str(caught.value) == f"train.batch_size: is 0 ({tmp_path}/a.yaml); {bound}"
    with pytest.raises(BadInput) as caught:
        load_config([str(tmp_path / "a.yaml"), "train.batch_size=200"])
    assert str(caught.value) == f"train.batch_size: is '200' (command line); {bound}"


def test_references_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPSWEEP_TEST", "8")
    given = ["train.epochs=${oc.env:CLIPSWEEP_TEST}", "store=${data.root}/artifacts"]
    config = load_config(given)
    assert (config.train.epochs, config.store) == (8, "data/nuscenes/artifacts")
    with pytest.raises(BadInput, match=r"store: .*NOWHERE.*\(command line\)"):
        load_config(["store=${oc.env:NOWHERE}"])


# --- kinds of data sets and teachers --------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.version=v1.0-mini", "data.nuscenes.version"),
        ("data.camera=image_0", "data.semantickitti.camera"),
        ("teacher.map=mine", "teacher.precomputed.map"),
        ("teacher.model=RN50", "teacher.maskclip.model or teacher.features.model"),
        ("teacher.size_hw=[8,8]", "teacher.precomputed.size_hw, teacher.maskclip.size_hw or"),
    ],
)
def test_an_old_key_names_the_new_one(old: str, new: str) -> None:
    key = old.split("=")[0]
    message = f"unknown key {key}; it stands below its kind: give {new}"
    with pytest.raises(BadInput, match=re.escape(message)):
        load_config([old])


def test_all_kinds_are_checked_and_the_chosen_one_is_in_force() -> None:
    given = ["data.nuscenes.version=v1.0-mini", "data.semantickitti.camera=image_0"]
    assert load_config(given).data.own == NuscenesConfig("v1.0-mini")
    kitti = load_config([*given, "data.kind=semantickitti"])
    assert kitti.data.own == SemanticKittiConfig("image_0")
    assert kitti.values("data.own") == {"data.own": {"camera": "image_0"}}
    assert plain(kitti)["data"]["semantickitti"] == {"camera": "image_0"}
    assert "nuscenes" not in plain(kitti)["data"]
    with pytest.raises(BadInput, match=r"teacher\.features\.batch: is '0' \(command line\)"):
        load_config(["teacher.features.batch=0"])


def test_a_kind_that_is_none_is_named() -> None:
    with pytest.raises(BadInput, match=r"data\.kind: is 'nuscnes' .*; did you mean nuscenes\?"):
        load_config(["data.kind=nuscnes"])


@dataclass(frozen=True)
class Mine:
    """Settings of a data set, or of a teacher, that somebody adds."""

    drives: Annotated[int, Field(ge=1, le=9, description="number of drives")] = 3


def test_one_entry_makes_a_data_set_or_a_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "mine", replace(DATASETS["nuscenes"], config=Mine))
    kind: Any = TeacherKind(Mine, lambda own, inputs: None)  # type: ignore[arg-type,return-value]
    monkeypatch.setitem(TEACHERS, "mine", kind)
    given = ["data.kind=mine", "data.mine.drives=5", "teacher.kind=mine"]
    config = load_config(given)
    assert (config.data.own, config.teacher.own) == (Mine(5), Mine(3))
    keys = {setting.name: setting for setting in describe()}
    assert keys["data.mine.drives"].allowed == "a whole number from 1 to 9"
    assert keys["teacher.kind"].allowed == "precomputed, maskclip, features or mine"
    with pytest.raises(BadInput, match=r"data\.mine\.drives: is '12' .* from 1 to 9"):
        load_config(["data.mine.drives=12"])


# --- a tool's own arguments -----------------------------------------------------------------------


def test_arguments_are_checked_like_settings() -> None:
    assert load_arguments(Mine, ["drives=4"]) == Mine(4)
    with pytest.raises(BadInput, match=r"drives: is '0' \(command line\); it must be a whole"):
        load_arguments(Mine, ["drives=0"])
    with pytest.raises(BadInput, match="unknown key drvies; did you mean drives"):
        load_config(["drvies=4"], also=["drives"])


def test_arguments_do_not_stand_in_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("frame: 12\n")
    with pytest.raises(BadInput, match="frame is an argument of the tool and no setting"):
        load_config([str(tmp_path / "a.yaml")], also=["frame"])


# --- wrong and hostile input ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("data.rot=x", "did you mean data.root"),
        ("trian.lr=1", "did you mean train.lr"),
        ("trian.epochs=3", r"unknown key trian\.epochs; did you mean train\.epochs"),
        ("teacher.kind=clip", "precomputed"),
        ("train.epochs=many", "train.epochs"),
        ("on_bad=ignore", "fail"),
        ("data=3", "group of keys"),
        ("nonsense=1", "unknown key nonsense"),
        ("train.batch_size=0", "from 1 to 128"),
        ("model.voxel_m=-0.1", "from 0.002"),
        ("fusion.cell_m=.nan", "fusion.cell_m"),
        (
            "fusion.fine_weight=.8",
            r"fusion\.fine_weight: and fusion\.cluster_weight sum to 1\.3; 1 at the most",
        ),
        (
            "fusion.coarse_cell_m=.2",
            r"fusion\.coarse_cell_m: is 0\.2; at least fusion\.cell_m, 0\.4",
        ),
        ("data.sensor_height_m=-2", "from 0 to 100"),
        ("train.weight_decay=inf", "from 0 to 10"),
        ("seed.x=1", "seed"),
        ("model.features=[]", "model.features"),
        ("model.features=[colour]", "intensity"),
        ("objectives.semantic.weight=0", "nothing to train on"),
    ],
)
def test_wrong_keys_and_values_are_named(argument: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        load_config([argument])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("a: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
        ("[1, 2]", "no mapping"),
        ("a: [", "not valid YAML"),
        ("# " + "x" * (1 << 20), "bytes"),
        ("include: [bad.yaml]\n", "includes itself"),
        ("include: bad.yaml\n", "includes itself"),
        ("include: 3\n", "include must be a list of files, not 3"),
        ("include: [[a.yaml]]\n", "include must be a list of files"),
        ("include:\n", "include must be a list of files, not None"),
        ("seed: 1\nseed: 2\n", "key 'seed' is given twice"),
        ("train: {lr: 1, epochs: 2, lr: 3}\n", "key 'lr' is given twice"),
        ("? [a]\n: 1\n", "not valid YAML"),
        ("store: 2020-13-45\n", "not valid YAML"),
        ("seed: " + "[" * 5000, "not valid YAML"),
        ("labels: {names: [car, truck]}\n", "labels.names must be a text"),
        ("labels: {names: no}\n", "labels.names must be a text, not False; put it in quotes"),
        ("store: {a: b}\n", "store must be a text"),
        ("data: {train: [no]}\n", "data.train must be a text"),
        ("data: {train: {a: b}}\n", "data.train must be a text"),
    ],
)
def test_hostile_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(BadInput, match=message):
        load_config([str(tmp_path / "bad.yaml")])


@pytest.mark.parametrize(("times", "levels"), [(1, 1100), (2, 8)])
def test_including_without_end_is_refused(tmp_path: Path, times: int, levels: int) -> None:
    """A long chain of files, and a short one that doubles at each level."""
    for level in range(levels):
        names = ", ".join([f"{level + 1}.yaml"] * times)
        (tmp_path / f"{level}.yaml").write_text(f"include: [{names}]\n")
    (tmp_path / f"{levels}.yaml").write_text("seed: 1\n")
    with pytest.raises(BadInput, match=r"\.yaml: is one of more than 100 included files"):
        load_config([str(tmp_path / "0.yaml")])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml"):
        load_config(["nowhere.yaml"])


def test_every_key_is_described() -> None:
    silent = [setting.name for setting in describe() if not setting.text]
    assert silent == []


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(CONFIGS.rglob("*.yaml")) if p.parent.name not in ("labels", "prompts")],
    ids=lambda p: p.stem,
)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert isinstance(load_config([str(path)]), Config)

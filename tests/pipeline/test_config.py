"""Configuration: merging, includes, and what is said of wrong keys and values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import pytest

from clipsweep.pipeline.config import _BOUNDS, Config, describe, load_config
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
    assert load_config(["data.train=mini_train, scene-0061"]).data.train == ("mini_train", "scene-0061")
    assert load_config(["data.train=[a,b]"]).data.train == ("a", "b")
    assert load_config(["data.train=10"]).data.train == ("10",)
    assert load_config(["data.train=['010', \"no\" ,]"]).data.train == ("010", "no")
    assert load_config(["teacher.size_hw=[224, 416]"]).teacher.size_hw == (224, 416)


@pytest.mark.parametrize("text", ["12:30", "0012", "no", "2020-13-45", "[car,truck]", "1e3", "null", "{a: b}", "a=b"])
def test_a_text_is_what_was_typed(text: str) -> None:
    assert load_config([f"store={text}"]).store == text
    assert load_config(["data.train=010"]).data.train == ("010",)


def test_a_number_in_a_file_may_stand_for_a_text(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {train: [7, a], eval: 8}\nframe: 12\nout:\n")
    config = load_config([str(tmp_path / "a.yaml")])
    assert (config.data.train, config.data.eval, config.frame, config.out) == (("7", "a"), ("8",), "12", "")


def numbers(group: object, prefix: str = "") -> Iterator[str]:
    for item in dataclasses.fields(group):  # type: ignore[arg-type]
        value = getattr(group, item.name)
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{prefix}{item.name}.")
        elif type(value) in (int, float):
            yield f"{prefix}{item.name}"


def test_every_number_has_bounds() -> None:
    assert {key for key in numbers(Config()) if not key.startswith("demo.")} == {*_BOUNDS}


@pytest.mark.parametrize("key", [key for key in _BOUNDS if type(reduce(getattr, key.split("."), Config())) is float])
def test_no_number_may_be_nan(key: str) -> None:
    with pytest.raises(BadInput, match=key):
        load_config([f"{key}=nan"])


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
        ("fusion.cell_share=.8", r"fusion\.cell_share: and fusion\.cluster_share sum to 1\.3; 1 at the most"),
        ("fusion.coarse_cell_m=.2", r"fusion\.coarse_cell_m: is 0\.2; at least fusion\.cell_m, 0\.4"),
        ("data.sensor_height_m=-2", "from 0 to 100"),
        ("train.weight_decay=inf", "from 0 to 10"),
        ("seed.x=1", "seed"),
        ("model.features=[]", "model.features"),
        ("model.features=[colour]", "intensity"),
        ("objectives.semantic.weight=0", "nothing to learn from"),
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
    silent = [key for key, _, text in describe(Config) if not text]
    assert silent == []


@pytest.mark.parametrize(
    "path",
    [p for p in sorted(CONFIGS.rglob("*.yaml")) if p.parent.name not in ("labels", "prompts")],
    ids=lambda p: p.stem,
)
def test_every_shipped_configuration_loads(path: Path) -> None:
    assert isinstance(load_config([str(path)]), Config)

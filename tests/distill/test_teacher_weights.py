"""Where weights come from.

Never by running a pickle's code, never by hanging, and with errors that name the cure.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from clipsweep.distill.teacher import weights
from clipsweep.distill.teacher.maskclip import MaskClip, MaskClipConfig
from clipsweep.distill.teacher.text import Prompts
from clipsweep.distill.teacher.weights import build_clip, find_clip, hub_file, read_weights
from clipsweep.projection.errors import BadInput
from tests.distill.tiny_clip import VIT, one_thread, write_clip

__all__ = ["one_thread"]  # a fixture for every test here

STATE = "open_clip_model.safetensors"


class Bomb:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_clip(tmp_path / "clip", VIT)
    return tmp_path / "clip"


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "weights.pt"])
def test_a_malicious_pickle_does_not_run(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (folder / STATE).unlink()
    mark = folder / "executed"
    for payload in (
        {"a": torch.ones(1), "b": Bomb(mark)},
        {"state_dict": {"a": Bomb(mark)}},
        Bomb(mark),
    ):
        for zipped in (True, False):
            torch.save(payload, folder / name, _use_new_zipfile_serialization=zipped)
            with pytest.raises(BadInput, match="cannot be loaded as plain weights"):
                read_weights(folder / name)
    assert not mark.exists()
    torch.load(folder / name, weights_only=False)
    assert mark.exists()  # the bomb was live


def test_safetensors_come_before_pickles(folder: Path) -> None:
    torch.save(load_file(folder / STATE), folder / "open_clip_pytorch_model.bin")
    assert find_clip(f"local-dir:{folder}", "").checkpoint.name == STATE
    (folder / STATE).unlink()
    assert find_clip(f"local-dir:{folder}", "").checkpoint.name == "open_clip_pytorch_model.bin"
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(
        BadInput, match=r"has no weights; it needs one of open_clip_model\.safetensors"
    ):
        find_clip(f"local-dir:{folder}", "")


def test_checkpoints_of_training_load_as_plain_weights(folder: Path) -> None:
    state = load_file(folder / STATE)
    (folder / STATE).unlink()
    stored = {
        "epoch": 3,
        "state_dict": {f"module.{name}": value.half() for name, value in state.items()},
    }
    torch.save(stored, folder / "open_clip_pytorch_model.bin")
    model = build_clip(find_clip(f"local-dir:{folder}", ""))
    assert model.logit_scale.dtype == torch.float32
    torch.testing.assert_close(model.visual.proj, state["visual.proj"].half().float())


def test_damaged_and_foreign_weights_are_refused(folder: Path) -> None:
    name = f"local-dir:{folder}"
    whole = (folder / STATE).read_bytes()
    for damaged in (whole[:-7], b"", b"<html>"):
        (folder / STATE).write_bytes(damaged)
        with pytest.raises(BadInput, match="cannot be loaded as plain weights"):
            build_clip(find_clip(name, ""))
    (folder / STATE).write_bytes(whole)
    state = load_file(folder / STATE)
    for wrong in ({**state, "more": torch.ones(1)}, {"visual.proj": torch.ones(2, 2)}):
        save_file(wrong, folder / STATE)
        with pytest.raises(BadInput, match="does not fit"):
            build_clip(find_clip(name, ""))
    torch.save([torch.ones(1)], folder / "list.pt")
    with pytest.raises(BadInput, match="no table of tensors"):
        read_weights(folder / "list.pt")


def test_bad_configurations_are_refused(folder: Path) -> None:
    config = folder / "open_clip_config.json"
    tree = json.loads(config.read_text())
    for text in ("{", "[]", "{}", json.dumps({"model_cfg": {"vision_cfg": VIT}})):
        config.write_text(text)
        with pytest.raises(BadInput, match=r"open_clip_config\.json"):
            find_clip(f"local-dir:{folder}", "")
    model = tree["model_cfg"]
    for wrong in ({"vision_cfg": {**VIT, "depth": 3}}, {"embed_dim": -1}, {"embed_dim": "24"}):
        config.write_text(json.dumps({"model_cfg": {**model, **wrong}}))
        with pytest.raises(BadInput, match="makes no model"):
            build_clip(find_clip(f"local-dir:{folder}", ""))


def test_digest_follows_the_bytes(folder: Path) -> None:
    name = f"local-dir:{folder}"
    first = find_clip(name, "").digest()
    assert find_clip(name, "").digest() == first
    moved = shutil.copytree(folder, folder.with_name("moved"))
    assert find_clip(f"local-dir:{moved}", "").digest() == first
    write_clip(folder, VIT, seed=1)
    assert find_clip(name, "").digest() != first


def test_activation_belongs_to_the_tag(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    asked = []

    def cached(repository: str, name: str, **_: Any) -> str:
        asked.append((repository, name))
        return str(folder / STATE)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert find_clip("ViT-B-16", "openai").config["quick_gelu"] is True
    assert find_clip("ViT-B-16", "laion2b_s34b_b88k").config["quick_gelu"] is False
    assert asked[0] == ("timm/vit_base_patch16_clip_224.openai", STATE)
    assert find_clip("ViT-B-32", "laion2b_s34b_b79k").mean == (0.48145466, 0.4578275, 0.40821073)
    assert find_clip("ViT-L-14-CLIPA", "datacomp1b").mean == (0.485, 0.456, 0.406)


def test_hub_models_come_from_the_cache_without_network(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def cached(_: str, name: str, local_files_only: bool = False) -> str:
        assert local_files_only
        if not (folder / name).exists():
            raise LocalEntryNotFoundError(name)
        return str(folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    hub, local = (
        MaskClip(MaskClipConfig(model, templates="plain"), Prompts([["car"]]))
        for model in ("hf-hub:me/tiny", f"local-dir:{folder}")
    )
    assert hub.digest() == local.digest()
    assert hub.text.shape == (1, 24)


@pytest.mark.usefixtures("empty_hub")
def test_unknown_names_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_reachable", lambda url: False)
    for model, tag, says in (
        ("ViT-B-61", "openai", "open_clip has no 'ViT-B-61'; alike: ViT-B-16"),
        ("ViT-B-16", "open_ai", "'open_ai' is neither a file nor a tag of ViT-B-16; tags: openai"),
        ("hf-hub:a/b/c", "", "is no repository name"),
        ("local-dir:/nowhere", "", "cannot be read"),
        ("ViT-B-16", "openai", "not in the local cache, and no network; give a local file"),
        ("ViT-B-16", "", "not in the local cache, and no network"),
        ("hf-hub:me/tiny", "", "not in the local cache, and no network"),
        (
            "hf-hub:me/tiny",
            "openai",
            "'openai', but hf-hub:me/tiny brings its own weights; leave teacher.maskclip.weights "
            "empty",
        ),
        ("local-dir:/nowhere", "a.safetensors", "brings its own weights"),
    ):
        with pytest.raises(BadInput, match=says):
            find_clip(model, tag)


@pytest.mark.usefixtures("empty_hub")
def test_a_network_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        monkeypatch.setattr(weights, "_NETWORK_WAIT_S", 0.5)
        started = time.perf_counter()
        with pytest.raises(BadInput, match="not in the local cache, and no network"):
            hub_file("me/tiny", ("a.safetensors",))
        assert time.perf_counter() - started < 3

"""Names to embeddings, and scores over names to scores over classes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipsweep.distill.teacher.maskclip import MaskClip, MaskClipConfig
from clipsweep.distill.teacher.text import (
    Encoder,
    Prompts,
    Vocabulary,
    cached,
    embed,
    group_max,
    group_names,
    sentences,
)
from clipsweep.distill.teacher.weights import build_clip, clip_tokenizer, find_clip
from clipsweep.projection.errors import BadInput
from tests.distill.tiny_clip import VIT, one_thread, write_clip

__all__ = ["one_thread"]  # a fixture for every test here

NAMES = ["car", "person on a bicycle", "undistinguishable object"]


def test_reference_templates_are_the_published_85() -> None:
    reference = sentences("reference")
    assert len(reference) == len(set(reference)) == 85
    assert reference[0] == "a bad photo of a {}."
    assert reference[-1] == "this is one {} in the scene."
    assert all(
        template.count("{}") == 1
        for name in ("reference", "short", "plain")
        for template in sentences(name)
    )
    with pytest.raises(BadInput, match="reference, short or plain"):
        sentences("long")


def test_embeddings_follow_open_clips_own_recipe(tmp_path: Path) -> None:
    name = write_clip(tmp_path / "clip", VIT)
    source = find_clip(name, "")
    ours = embed(
        Encoder(build_clip(source), clip_tokenizer(source), torch.device("cpu"), 7),
        NAMES,
        sentences("short"),
    )
    model = open_clip.create_model(name).eval()
    tokenizer = open_clip.get_tokenizer(name)
    for own, word in zip(ours, NAMES, strict=True):
        with torch.no_grad():
            each = model.encode_text(
                tokenizer([t.replace("{}", word) for t in sentences("short")]), normalize=True
            )
        mean = each.mean(0)
        np.testing.assert_allclose(own, (mean / mean.norm()).numpy(), atol=2e-6)


def test_embeddings_of_a_custom_text_tower_follow_it_too(tmp_path: Path) -> None:
    name = write_clip(tmp_path / "clip", VIT, custom_text=True)
    source = find_clip(name, "")
    ours = Encoder(build_clip(source), clip_tokenizer(source), torch.device("cpu"))(NAMES)
    model = open_clip.create_model(name).eval()
    with torch.no_grad():
        theirs = model.encode_text(open_clip.get_tokenizer(name)(NAMES))
    torch.testing.assert_close(ours, theirs)


def test_words_outside_the_vocabulary_give_a_warning_and_names_of_nothing_else_are_refused(
    tmp_path: Path,
) -> None:
    name = write_clip(tmp_path / "clip", VIT)
    state = load_file(tmp_path / "clip/open_clip_model.safetensors")
    tokenizer = clip_tokenizer(find_clip(name, ""))
    for word in ("an", "yellow"):
        state["token_embedding.weight"][tokenizer([word])[0, 1]] = 0
    save_file(state, tmp_path / "clip/open_clip_model.safetensors")
    source = find_clip(name, "")
    assert Encoder(build_clip(source), tokenizer, torch.device("cpu")).unknown("an Yellow_bus") == [
        "an",
        "Yellow",
    ]
    plain = MaskClipConfig(name, templates="plain")
    with pytest.warns(UserWarning, match="^yellow in 'a yellow bus' means nothing to this model"):
        # encodes the text
        MaskClip(plain, Prompts([["a yellow bus"]])).text  # noqa: B018
    clip = MaskClip(plain, Prompts([["bus"]], ["an yellow"]))
    with pytest.raises(BadInput, match="'an yellow' means nothing to this model"):
        clip.text  # noqa: B018
    for nothing in ("!!!", "\N{AUTOMOBILE}", "42"):
        with pytest.raises(BadInput, match=f"'{nothing}' means nothing to this model"):
            MaskClip(plain, Prompts([["bus"], [nothing]])).text  # noqa: B018
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # an article is no loss
        MaskClip(plain, Prompts([["an ambulance"]])).text  # noqa: B018


def test_names_are_grouped_in_order_and_negatives_stand_alone() -> None:
    names, group = group_names([["car", "van"], ["bus"]], ["sky", "cloud"])
    assert names == ["car", "van", "bus", "sky", "cloud"]
    assert group.tolist() == [0, 0, 1, 2, 3]
    for prompts in ([["car"], []], [["car", " "]]):
        with pytest.raises(BadInput, match="no name or an empty one"):
            group_names(prompts, [])


def test_best_name_counts_for_its_group() -> None:
    scores = torch.randn(2, 3, 5)
    best = group_max(scores, torch.tensor([0, 0, 1, 2, 2]), 3)
    expected = torch.stack([scores[..., :2].amax(-1), scores[..., 2], scores[..., 3:].amax(-1)], -1)
    torch.testing.assert_close(best, expected)


def test_text_of_a_class_is_the_mean_over_its_names() -> None:
    embedding = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    text = Vocabulary(embedding, np.array([0, 0, 1]), 1).of_classes()
    np.testing.assert_allclose(text, [[0.5**0.5, 0.5**0.5]], atol=1e-6)


def test_cache_is_used_when_whole_and_mended_when_not(tmp_path: Path) -> None:
    made = np.ones((2, 3), np.float32)
    calls = []

    def make() -> np.ndarray:
        calls.append(1)
        return made

    for _ in range(2):
        np.testing.assert_array_equal(cached(tmp_path / "new", "a" * 64, 2, make), made)
    assert len(calls) == 1
    (file,) = (tmp_path / "new").iterdir()
    for damaged in (file.read_bytes()[:-4], b""):
        file.write_bytes(damaged)
        cached(tmp_path / "new", "a" * 64, 2, make)
    cached(tmp_path / "new", "b" * 64, 2, make)
    cached(None, "a" * 64, 2, make)
    assert len(calls) == 5
    assert len(list((tmp_path / "new").iterdir())) == 2

"""The benchmark of labelling compares like with like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clipsweep.tools.benchmarks.teacher import rows
from tests.distill.tiny_clip import one_thread

__all__ = ["one_thread"]  # a fixture for every test here


def test_both_sides_read_as_many_images_at_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    # images, rows and columns of tokens, by image tower
    seen: dict[torch.nn.Conv2d, list[tuple[int, ...]]] = {}
    convolve = torch.nn.Conv2d.forward

    def spy(module: torch.nn.Conv2d, images: Tensor) -> Any:
        tokens = convolve(module, images)
        seen.setdefault(module, []).append((len(tokens), *tokens.shape[2:]))
        return tokens

    monkeypatch.setattr(torch.nn.Conv2d, "forward", spy)
    list(rows("ViT-S-32-alt", (64, 96), batch=1, rounds=1, last_blocks=("naclip",)))
    ours, peer = seen.values()
    # two images, in the round that counts and in the one before
    assert ours == peer == [(1, 2, 3)] * 4

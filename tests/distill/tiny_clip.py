"""Small CLIP models with random weights, in open_clip's folder format, and cameras to show them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.model import CLIP
from PIL import Image
from safetensors.torch import save_file

from clipsweep.projection.frames import Camera, File
from clipsweep.projection.pose import Pose

VIT = {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices on one thread.

    Several that wait for each other take ten times as long on a busy machine.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_clip(folder: Path, vision: dict[str, Any], seed: int = 0, **more: Any) -> str:
    """Writes a model whose every parameter is random, and returns its name."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = more.pop("preprocess", {})
    config = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": vision, "text_cfg": TEXT, **more}
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    )
    save_file(random_state(config, seed), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def random_state(config: dict[str, Any], seed: int) -> dict[str, torch.Tensor]:
    """Weights of a configuration that leave no bias at 0 and no scale at 1."""
    generator = torch.Generator().manual_seed(seed)
    state = CLIP(
        **{key: value for key, value in config.items() if key != "custom_text"}
    ).state_dict()
    for name, value in state.items():
        if value.is_floating_point() and "running" not in name:
            noise = torch.randn(value.shape, generator=generator)
            spread = 0.3 if value.ndim < 2 else value[0].numel() ** -0.5
            state[name] = (value if value.ndim < 2 and "weight" in name else 0) + spread * noise
    state["logit_scale"] = torch.tensor(3.0)
    return {name: value.contiguous() for name, value in state.items()}


def write_camera(path: Path, size_hw: tuple[int, int], seed: int = 0, mode: str = "RGB") -> Camera:
    """A camera with a smooth random image of its own, PNG or JPEG by the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size_hw[::-1], Image.Resampling.BICUBIC).convert(mode).save(path)
    return camera_of(path, size_hw)


def camera_of(path: Path, size_hw: tuple[int, int]) -> Camera:
    """A camera of an image file as it is now."""
    pose = Pose(np.eye(3), np.zeros(3))
    return Camera("CAM_FRONT", 0, pose, np.eye(3), size_hw, File(path, path.stat().st_size))

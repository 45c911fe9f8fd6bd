"""Benchmark of pixel labelling by CLIP against open_clip's bare image encoder.

From JPEG files to labels, at the same number of tokens.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipsweep.distill.teacher.dense_features import LastBlock
from clipsweep.distill.teacher.images import decode, decoders, prefetch
from clipsweep.distill.teacher.maskclip import MaskClip, MaskClipConfig
from clipsweep.distill.teacher.text import Prompts
from clipsweep.projection.frames import Camera, File
from clipsweep.projection.pose import Pose
from clipsweep.tools.benchmarks.row import Row

_IMAGE_HW = (900, 1600)  # a nuScenes camera's
_SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
_PROMPTS = [[f"class {index}", f"kind {index}"] for index in range(16)]
_NEGATIVES = ["sky", "cloud", "car bonnet", "undistinguishable object"]


def rows(
    model: str = "ViT-B-16-quickgelu",
    size_hw: tuple[int, int] = (224, 416),
    batch: int = 4,
    rounds: int = 5,
    last_blocks: tuple[LastBlock, ...] = ("residual", "naclip"),
) -> Iterator[Row]:
    """Benchmark rows of CLIP's dense features: images per second, labelling and bare encoder.

    Images per second from JPEG files to labels, and of ``encode_image`` on ready tensors.

    Weights are random: they cost the same. Both sides take turns in one process; the figures are
    medians.

    Args:
        model: open_clip name of the image tower.
        size_hw: size of the network's input [px].
        batch: images per forward pass, on both sides.
        rounds: turns each side takes, after one that is not counted; each labels two batches.
        last_blocks: which of the encoder's last block to measure.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cameras = [_camera(root / f"{index}.jpg", index) for index in range(2 * batch)]
        bare = _random_clip(model, root, size_hw).visual.to(device)
        for last_block in last_blocks:
            config = MaskClipConfig(
                f"local-dir:{root}",
                last_block=last_block,
                size_hw=size_hw,
                templates="plain",
                batch=batch,
            )
            teacher = MaskClip(config, Prompts(_PROMPTS, _NEGATIVES), device=device)
            ours, peer = _race(teacher, cameras, bare, batch, size_hw, rounds)
            yield Row(
                name=f"label JPEGs of 1600x900 with {model}, {last_block}, on {device}",
                unit="images/s",
                ours=ours,
                peer_name="open_clip encode_image, same tokens and batch, no decoding",
                peer=peer,
                ratio=ours / peer,
                bar=0.95,
            )


def decoded_per_second(images: int, size_hw: tuple[int, int] = (224, 416)) -> float:
    """Rate of decoding and resizing alone, by as many threads as labelling uses [images/s]."""
    with tempfile.TemporaryDirectory() as folder:
        cameras = [_camera(Path(folder) / f"{index}.jpg", index) for index in range(images)]
        start = time.perf_counter()
        for _ in prefetch(cameras, lambda camera: decode(camera, size_hw), decoders(0), images):
            pass
        return images / (time.perf_counter() - start)


def _random_clip(model: str, root: Path, size_hw: tuple[int, int]) -> Any:
    """Writes a random CLIP model with a small text encoder to a folder.

    Returns it at the input size, for the peer.
    """
    import open_clip
    from safetensors.torch import save_file

    config = {**(open_clip.get_model_config(model) or {}), "text_cfg": _SMALL_TEXT}
    (root / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    state = open_clip.model.CLIP(**config).state_dict()
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        root / "open_clip_model.safetensors",
    )
    return open_clip.create_model(f"local-dir:{root}", force_image_size=size_hw).eval()


def _camera(path: Path, seed: int) -> Camera:
    """Writes a photograph-like JPEG: smooth shapes and some noise, about the size of a real one."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 256, (45, 80, 3), dtype=np.uint8)).resize(
        (_IMAGE_HW[1], _IMAGE_HW[0])
    )
    noisy = np.asarray(smooth).astype(np.int16) + random.integers(
        -8, 9, (*_IMAGE_HW, 3), dtype=np.int16
    )
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=85)
    pose = Pose(np.eye(3), np.zeros(3))
    return Camera(path.stem, 0, pose, np.eye(3), _IMAGE_HW, File(path, path.stat().st_size))


@torch.inference_mode()
def _race(
    teacher: MaskClip,
    cameras: list[Camera],
    bare: Any,
    batch: int,
    size_hw: tuple[int, int],
    rounds: int,
) -> tuple[float, float]:
    """Median images per second of the teacher and of the bare encoder."""
    ready = torch.randn(batch, 3, *size_hw, device=next(bare.parameters()).device)

    def encode() -> None:
        for _ in range(len(cameras) // batch):
            bare(ready).cpu()

    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for run, spent in zip((lambda: teacher(cameras), encode), times, strict=True):
            start = time.perf_counter()
            run()
            if turn:
                spent.append(time.perf_counter() - start)
    ours, peer = (len(cameras) / statistics.median(spent) for spent in times)
    return ours, peer

"""Benchmark of training: input pipeline and loss memory against the published way of both.

The input of a training step, and the memory of the costliest loss.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from clipsweep.distill.objectives.spatiotemporal import SpatioTemporalConfig, spatiotemporal
from clipsweep.distill.student.batch import Batch, collate_groups
from clipsweep.pipeline.artifacts import store
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config, load_config
from clipsweep.pipeline.stages.dataset import TrainingFrames, pixel_targets
from clipsweep.pipeline.stages.fit import training_frames
from clipsweep.pipeline.stages.index import make_index
from clipsweep.pipeline.stages.pixels import make_pixels
from clipsweep.pipeline.yaml_files import CONFIGS
from clipsweep.projection.frames import Frame
from clipsweep.tools.benchmarks.row import Row

_DIM = 512
_SLOTS = 8
_CLASSES = 16


def rows(data_root: Path, rounds: int = 2) -> Iterator[Row]:
    """Benchmark rows of training: input of three sweeps, memory of the spatio-temporal loss.

    Args:
        data_root: folder of the samples; real nuScenes frames are read.
        rounds: turns each side takes with every frame.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = _config(data_root / "nuscenes-0523", folder)
        index = make_index(config)
        frames = training_frames(index, config)
        pixels = make_pixels(config, index)
        ready = TrainingFrames(frames, partial(pixel_targets, pixels, config), config)
        yield _input(ready, frames, rounds)
        yield _hashing(ready, pixels, rounds)
        yield _memory(
            max(
                (_batch(ready, 0, number) for number in range(len(frames))),
                key=lambda b: len(b.pair_point),
            )
        )


def _config(root: Path, store: str) -> Config:
    """CLIP2Scene's training recipe on real frames, with the demo's small CLIP.

    Features of 224x416 pixels, kept.
    """
    teacher = (
        "teacher.maskclip.model=local-dir:pipeline/demo/teacher",
        "teacher.maskclip.size_hw=[224,416]",
        "labels.prompts=demo",
    )
    data = (
        f"data.root={root}",
        "data.nuscenes.version=v1.0-trainval",
        "data.train=scene-0523",
        "data.eval=scene-0523",
    )
    return load_config(
        [
            str(CONFIGS / "pretrain/clip2scene.yaml"),
            *teacher,
            *data,
            f"store={store}",
            "run.progress=false",
        ]
    )


# --- input ----------------------------------------------------------------------------------------


def _input(ready: TrainingFrames, frames: list[Frame], rounds: int) -> Row:
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for number in range(len(frames)):
            images = [
                c.image.path for i in range(3) for c in frames[(number + i) % len(frames)].cameras
            ]
            sides: tuple[Callable[[], object], ...] = (
                partial(_batch, ready, turn, number),
                partial(_decode, images),
            )
            for side, spent in zip(sides, times, strict=True):
                start = time.perf_counter()
                side()
                if turn:
                    spent.append(time.perf_counter() - start)
    ours, peer = (1 / statistics.median(spent) for spent in times)
    name = "training input, three sweeps with labels and features of pixels, one process"
    peer_name = "18 JPEGs decoded by PIL and resized to 416x224"
    return Row(
        name=name,
        unit="samples/s",
        ours=ours,
        peer_name=peer_name,
        peer=peer,
        ratio=ours / peer,
        bar=20,
    )


def _hashing(ready: TrainingFrames, pixels: Artifact, rounds: int) -> Row:
    """Cost of verifying shards with sha256, once a process, against one pass over their frames."""
    passes: list[float] = []
    hashes: list[float] = []
    for turn in range(rounds):
        start = time.perf_counter()
        for number in range(len(ready.frames)):
            _batch(ready, turn, number)
        passes.append(time.perf_counter() - start)
        store.forget_checked()
        start = time.perf_counter()
        for name in pixels.shards():
            pixels.payload(name)
        hashes.append(time.perf_counter() - start)
    ours = statistics.median(hashes)
    peer = statistics.median(passes)
    name = "sha256 of the shards that a pass over the training frames reads, once a process"
    return Row(
        name=name, unit="s", ours=ours, peer_name="that pass", peer=peer, ratio=peer / ours, bar=33
    )


def _batch(ready: TrainingFrames, epoch: int, number: int) -> Batch:
    group = ready[epoch, number]
    if isinstance(group, Exception):
        raise group
    return collate_groups([group])


def _decode(images: list[Path]) -> list[np.ndarray]:
    return [np.asarray(Image.open(path).convert("RGB").resize((416, 224))) for path in images]


# --- memory ---------------------------------------------------------------------------------------


def _memory(batch: Batch) -> Row:
    """Peak memory of a loss: forward and backward pass over a batch's pairs, without its inputs."""
    assert batch.voxel_id is not None
    random = torch.Generator().manual_seed(0)
    pairs = len(batch.voxel_id)
    text = F.normalize(torch.randn(_CLASSES, _DIM, generator=random), dim=1)
    local, semantic, pixel = (
        F.normalize(torch.randn(pairs, _DIM, generator=random), dim=1) for _ in range(3)
    )
    local.requires_grad_()
    text_of_pair = text[batch.pair_label]
    voxel = batch.voxel_id

    def ours() -> Tensor:
        return spatiotemporal(
            local, semantic, pixel, text_of_pair, voxel, SpatioTemporalConfig(weight=1.0)
        )

    mine = _peak_mb(lambda: ours().backward())
    theirs = _peak_mb(lambda: _dense(local, pixel, text_of_pair, voxel).backward())
    return Row(
        name=f"memory of the spatio-temporal objective, {pairs} pairs of 3 sweeps and 6 cameras, "
        f"{_DIM} dimensions",
        unit="MB",
        ours=mine,
        peer_name=f"packed densely, {int(voxel.max()) + 1} voxels x {_SLOTS} x {2 * _DIM + 1}",
        peer=theirs,
        ratio=theirs / mine,
        bar=10,
    )


def _dense(
    local: Float[Tensor, "m d"],
    pixel: Float[Tensor, "m d"],
    text: Float[Tensor, "m d"],
    voxel: Int64[Tensor, " m"],
) -> Float[Tensor, ""]:
    """CLIP2Scene's spatio-temporal loss with the dense layout of its code (memory baseline).

    A tensor of 8 slots a voxel of point, pixel and number side by side.
    """
    order = voxel.argsort(stable=True)
    counts = voxel.bincount()
    first = counts.cumsum(0) - counts
    slot = torch.arange(len(voxel)) - first[voxel[order]]
    kept = order[slot < _SLOTS]
    slot = slot[slot < _SLOTS]
    rows = torch.cat([local[kept], pixel[kept], kept[:, None].float()], 1)
    packed = local.new_zeros(len(counts), _SLOTS, rows.shape[1]).index_put(
        (voxel[kept], slot), rows
    )
    point = packed[..., : local.shape[1]]
    text_of_pair = text[order[first]]
    scores = (point @ text_of_pair[:, :, None])[..., 0]
    share = scores.masked_fill(scores == 0, -torch.inf).softmax(1)
    fused = (share[:, :, None] * point).sum(1, keepdim=True)
    return (1 - torch.sigmoid((point * fused).sum(2))).mean()


def _peak_mb(run: Callable[[], object]) -> float:
    """Peak memory that a run adds to this process [MB] (Linux)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the mark of the height starts anew
    before = _resident_kb("VmRSS")
    run()
    return (_resident_kb("VmHWM") - before) / 1024


def _resident_kb(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))

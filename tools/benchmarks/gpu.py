"""Benchmark of one GPU: sparse U-Nets, mixed precision, labelling, training, NCCL, its tests.

Each part stands alone: of one that fails a row says why, and the others run.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, distributed

from clipsweep.distill.sparse.ops import Backend, Sites, SparseTensor
from clipsweep.distill.student.batch import Batch
from clipsweep.distill.student.unet import UNet
from clipsweep.distill.teacher.images import decoders
from clipsweep.pipeline.terminal import say
from clipsweep.projection.errors import BadInput
from clipsweep.tools.benchmarks import gpu_training, sparse, teacher
from clipsweep.tools.benchmarks.row import Row

_ROOT = Path(__file__).resolve().parents[2]
_FIT_STEPS = 50
FAILED = "failed"
"""Unit of the row of a part that could not be measured."""


def rows(
    data: Path,
    device: str = "cuda",
    sizes: Sequence[str] = ("tiny", "unet14", "unet34"),
    sweeps: Sequence[int] = sparse.SWEEPS,
    demo: Sequence[str] = (),
) -> Iterator[Row]:
    """Benchmark rows of a GPU against the CPU of the same machine.

    Args:
        data: folder of the samples; a real nuScenes frame is read.
        device: cuda, or cpu to try that everything runs.
        sizes: networks.
        sweeps: merged sweeps of the point clouds.
        demo: settings of the demo that is trained.

    Raises:
        BadInput: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device", "is cuda, and torch sees none", "device=cpu tries the benchmark")
    clouds = [sparse.batch_of(cloud) for cloud in sparse.clouds(data / "nuscenes-0523", sweeps)]
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "networks": partial(_networks, clouds, sizes, device),
        "precision": partial(_precisions, clouds[len(clouds) // 2], sizes[-1], device),
        "labelling": partial(_labelling, device),
        "training": partial(gpu_training.rows, device, demo),
        "nccl": partial(_all_reduce, sizes[-1], device),
        "tests": _tests,
    }
    yield from measured(parts)


def measured(parts: Mapping[str, Callable[[], Iterator[Row]]]) -> Iterator[Row]:
    """Rows of all parts; of a part that fails a row says why."""
    for name, part in parts.items():
        start = time.perf_counter()
        try:
            yield from part()
        except Exception as error:
            yield _failure(name, error)
        say(f"{name}: {time.perf_counter() - start:.0f} s")


def _failure(part: str, error: Exception) -> Row:
    """Row that says why a part has none."""
    name = f"{part}: {type(error).__name__}: {error}"
    return Row(name=name, unit=FAILED, ours=0.0, peer_name="a result", peer=1.0, ratio=0.0, bar=1.0)


def faster(name: str, unit: str, ours: float, peer_name: str, peer: float) -> Row:
    """Row in which less is better, without a bar."""
    return Row(
        name=name, unit=unit, ours=ours, peer_name=peer_name, peer=peer, ratio=peer / ours, bar=None
    )


# --- networks -------------------------------------------------------------------------------------


def _networks(batches: Sequence[Batch], sizes: Sequence[str], device: str) -> Iterator[Row]:
    """Speed and values of the networks on the device against the native backend on the CPU."""
    cpu = f"native backend, CPU, {torch.get_num_threads()} threads"
    for size in sizes:
        here = sparse.network_of(size).to(device)
        there = sparse.network_of(size)
        for batch in batches:
            label = f"{size}, {len(batch.coords)} voxels"
            moved = batch.to(torch.device(device))
            for kind, run in {"forward": _forward, "training step": _step}.items():
                name = f"{label}: {kind} on {device}, maps included"
                ours = _median_ms(partial(run, here, moved), 15)
                yield faster(name, "ms", ours, cpu, _median_ms(partial(run, there, batch), 3))
            yield from _differences(label, here, there, moved, batch)


def _forward(
    network: UNet, batch: Batch, backend: Backend = "auto", half: torch.dtype | None = None
) -> Tensor:
    with torch.no_grad():
        return _output(network, batch, backend, half)


def _output(network: UNet, batch: Batch, backend: Backend, half: torch.dtype | None) -> Tensor:
    with torch.autocast(batch.feats.device.type, half, enabled=half is not None):
        return network(SparseTensor(batch.feats, Sites(batch.coords, backend))).feats


def _step(
    network: UNet, batch: Batch, backend: Backend = "auto", half: torch.dtype | None = None
) -> None:
    """Forward and backward pass."""
    network.zero_grad()
    out = _output(network, batch, backend, half)
    out.float().square().mean().backward()


def _differences(label: str, here: UNet, there: UNet, moved: Batch, batch: Batch) -> Iterator[Row]:
    """Largest differences of outputs and gradients, as shares of the largest value."""
    outputs = [_forward(here, moved).cpu(), _forward(there, batch)]
    _step(here, moved)
    _step(there, batch)
    gradients = [
        torch.cat([p.grad.cpu().flatten() for p in network.parameters() if p.grad is not None])
        for network in (here, there)
    ]
    for kind, (ours, peer) in {"outputs": outputs, "gradients": gradients}.items():
        difference = ((ours - peer).abs().max() / peer.abs().max()).item()
        name = f"{label}: largest difference of {kind}, of the largest"
        row = faster(name, "share", max(difference, 1e-12), "allowed", 1e-2)
        yield Row(**{**row, "bar": 1.0})


def _median_ms(run: Callable[[], object], rounds: int) -> float:
    """Median time of a run that ends when the device has done it [ms]; the first two not counted.

    A run on the CPU that takes over a second is measured once.
    """
    times: list[float] = []
    for turn in range(rounds + 2):
        _wait()
        start = time.perf_counter()
        run()
        _wait()
        spent = (time.perf_counter() - start) * 1e3
        times += [spent] if turn > 1 or spent > 1000 else []
        if turn and spent > 1000:
            break
    return statistics.median(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# --- precision ------------------------------------------------------------------------------------


def _precisions(batch: Batch, size: str, device: str) -> Iterator[Row]:
    """Training step in half precision against float32: speed, memory, loss; spconv and native."""
    moved = batch.to(torch.device(device))
    arms: dict[str, tuple[Backend, torch.dtype | None]] = {
        "float32": ("auto", None),
        "float32, native backend": ("native", None),
        "bf16, native backend": ("native", torch.bfloat16),
    }
    if device == "cuda":  # spconv has no bf16, and on a CPU nothing is in fp16
        arms["fp16"] = ("auto", torch.float16)
    measured = {name: _training(size, moved, *arm) for name, arm in arms.items()}
    base = measured.pop("float32")
    label = f"{size}, {len(batch.coords)} voxels on {device}"
    for name, ours in measured.items():
        for what, unit, mine, peer in zip(
            ("training step", "peak memory", f"loss after {_FIT_STEPS} steps on one batch"),
            ("ms", "MB", "nats"),
            ours,
            base,
            strict=True,
        ):
            if peer:
                yield faster(f"{label}: {what}, {name}", unit, mine, "float32", peer)


def _training(
    size: str, batch: Batch, backend: Backend, half: torch.dtype | None
) -> tuple[float, float, float]:
    """Time of a step [ms], peak memory on the GPU [MB] and the loss after some steps on a batch."""
    network = sparse.network_of(size).to(batch.feats.device)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    spent = _median_ms(partial(_step, network, batch, backend, half), 15)
    peak = torch.cuda.max_memory_allocated() / 1e6 if batch.feats.is_cuda else 0.0
    return spent, peak, _fit(network, batch, backend, half)


def _fit(network: UNet, batch: Batch, backend: Backend, half: torch.dtype | None) -> float:
    """Loss after some steps towards classes by height."""
    height = batch.coords[:, 3].float()
    classes = torch.bucketize(height, height.quantile(torch.tensor([0.25, 0.5, 0.75]).to(height)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    scaler = torch.amp.GradScaler(batch.feats.device.type, enabled=half is torch.float16)
    loss = torch.tensor(0.0)
    for _ in range(_FIT_STEPS):
        optimizer.zero_grad()
        out = _output(network, batch, backend, half).float()
        loss = torch.nn.functional.cross_entropy(out[:, :4], classes)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return loss.item()


# --- labelling, NCCL, tests -----------------------------------------------------------------------


def _labelling(device: str) -> Iterator[Row]:
    """Labelling of JPEG files against the image encoder alone, and decoding alone against both."""
    batch, rounds = (32, 3) if device == "cuda" else (1, 1)
    for row in teacher.rows(batch=batch, rounds=rounds, last_blocks=("naclip",)):
        yield row
        yield Row(
            name=f"decode those JPEGs alone, {decoders(0)} threads",
            unit="images/s",
            ours=(alone := teacher.decoded_per_second(2 * batch)),
            peer_name="labelling them",
            peer=row["ours"],
            ratio=alone / row["ours"],
            bar=None,
        )


def _all_reduce(size: str, device: str) -> Iterator[Row]:
    """Sum of a network's gradients over one process: NCCL on a GPU, gloo on a CPU."""
    kind = "nccl" if device == "cuda" else "gloo"
    values = torch.cat([p.detach().flatten() for p in sparse.network_of(size).parameters()])
    moved = values.to(device)
    with tempfile.TemporaryDirectory() as folder:
        place = f"file://{folder}/store"
        distributed.init_process_group(kind, init_method=place, rank=0, world_size=1)
        try:
            spent = _median_ms(lambda: distributed.all_reduce(moved), 20)
        finally:
            distributed.destroy_process_group()
    if not torch.equal(moved.cpu(), values):
        raise RuntimeError("the sum over one process is another one")
    copied = _median_ms(moved.clone, 20)
    name = f"{kind} all_reduce of {size}'s gradients, {values.numel() / 1e6:.1f} M, one process"
    yield faster(name, "ms", spent, "copying them", copied)


def _tests() -> Iterator[Row]:
    """The tests that need a GPU: how many of them pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu"]
    folder = str(_ROOT / "tests/distill")
    done = subprocess.run([*command, folder], capture_output=True, text=True, cwd=_ROOT)
    counts = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", done.stdout)
    wanted = sum(int(number) for number, _ in counts)
    passed = sum(int(number) for number, kind in counts if kind == "passed")
    if not wanted:
        raise RuntimeError(f"pytest found none: {(done.stdout + done.stderr)[-2000:]}")
    if passed < wanted:
        say(done.stdout[-3000:])
    yield Row(
        name="tests of pytest -m gpu that pass",
        unit="tests",
        ours=passed,
        peer_name="all of them",
        peer=wanted,
        ratio=passed / wanted,
        bar=1.0,
    )

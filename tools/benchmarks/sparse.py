"""Benchmark of sparse convolution: the native sparse U-Net on the CPU against spconv.

Both have the same network and weights, and run interleaved in one process.

spconv's backward pass asks for a CUDA stream, so it cannot train on a CPU; for the measurement that
look-up is replaced. It runs as it is, with all threads, where its results are now and then wrong:
the rows on errors give the deviation.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor, nn

from clipsweep.distill.sparse.ops import (
    Backend,
    Down,
    Pointwise,
    Sites,
    SparseTensor,
    SubMConv3d,
    Up,
)
from clipsweep.distill.student.batch import Batch, collate
from clipsweep.distill.student.unet import SIZES, UNet
from clipsweep.distill.student.voxels import Sample, voxelize
from clipsweep.projection.frames import SweepLayout
from clipsweep.projection.sweeps import merge
from clipsweep.tools.benchmarks import samples
from clipsweep.tools.benchmarks.row import Row

SWEEPS = (1, 4, 10)
_FEATURES = ("intensity", "height", "range", "age", "offset")
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
_VOXEL_M = 0.1
_HEIGHT_M = 1.84
_EGO_BOX_M = 1.5
_SIDE = 2048
_CROP = 64


def clouds(nuscenes: Path, sweeps: Sequence[int] = SWEEPS) -> list[Float32[np.ndarray, "_ 5"]]:
    """Point cloud of the last key frame of a nuScenes folder, so many sweeps merged.

    X, y, z [m], intensity 0..1, age [s].
    """
    frame = samples.frames(samples.open_devkit(nuscenes))[-1]
    merged = [merge(frame, count, SweepLayout(ego_box_m=_EGO_BOX_M)) for count in sweeps]
    return [np.column_stack([cloud.xyz, cloud.intensity, cloud.age_s]) for cloud in merged]


def rows(
    clouds: Sequence[Float32[np.ndarray, "_ 5"]], seconds: float = 20.0, size: str = "unet14"
) -> Iterator[Row]:
    """Benchmark rows for each point cloud: training step, inference, errors, memory.

    The bars are for one and for four merged sweeps, so for the clouds but the last.

    Args:
        clouds: x, y, z [m], intensity 0..1 and age [s], from few sweeps to many.
        seconds: time spent on each cloud, and at least three steps of everything.
        size: the network.
    """
    peer = f"spconv {_version()} on the CPU, {torch.get_num_threads()} threads"
    batches = [batch_of(cloud) for cloud in clouds]
    steps: list[float] = []
    with _spconv_trains():
        for i, batch in enumerate(batches):
            label = f"{size}, {len(batch.coords)} voxels"
            bars = i + 1 < len(batches) or len(batches) == 1
            times = _race(_arms(network_of(size), batch), seconds)
            steps.append(times["step, float32"])
            for name in ("step, float32", "step, bf16", "forward, float32", "forward, bf16"):
                bar = (2.0 if "bf16" in name else 1.0) if bars and "step" in name else None
                yield _row(
                    f"{label}: {name}",
                    "ms",
                    times[name],
                    peer,
                    times["spconv " + name.split(",")[0]],
                    bar,
                )
            yield _row(
                f"{label}: kernel maps of all levels",
                "ms",
                times["maps"],
                peer,
                times["spconv maps"],
                None,
            )
            yield from _rates(label, times, 3 * _gflop(size, batch), bars)
            yield from _errors(label, batch, peer)
    for cloud, batch in list(zip(clouds, batches, strict=True))[:-1]:
        for name, bfloat in (("float32", False), ("bf16", True)):
            ours = _peak_mb(cloud, size, "native", bfloat)
            theirs = _peak_mb(cloud, size, "spconv", False)
            yield _row(
                f"{size}, {len(batch.coords)} voxels: peak memory, {name}",
                "MB",
                ours,
                peer,
                theirs,
                1.0,
            )
    arithmetic = _gflop(size, batches[-1]) / _gflop(size, batches[0])
    name = f"{size}: a step's growth, {len(batches[0].coords)} to {len(batches[-1].coords)} voxels"
    yield _row(name, "times", steps[-1] / steps[0], "growth of the arithmetic", arithmetic, None)


def _row(name: str, unit: str, ours: float, peer_name: str, peer: float, bar: float | None) -> Row:
    """Benchmark row in which less is better."""
    return Row(
        name=name, unit=unit, ours=ours, peer_name=peer_name, peer=peer, ratio=peer / ours, bar=bar
    )


def _version() -> str:
    names = [
        d.metadata["Name"]
        for d in importlib.metadata.distributions()
        if d.metadata["Name"].startswith("spconv")
    ]
    return importlib.metadata.version(names[0]) if names else "?"


@contextlib.contextmanager
def _spconv_trains() -> Iterator[None]:
    """Lets spconv's backward pass run without CUDA."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from spconv.pytorch import ops

        before = ops.get_current_stream
        ops.get_current_stream = lambda: 0
        try:
            yield
        finally:
            ops.get_current_stream = before


def batch_of(cloud: Float32[np.ndarray, "n 5"]) -> Batch:
    """Batch of one point cloud (see ``clouds``), in voxels of 0.1 m."""
    xyz = np.ascontiguousarray(cloud[:, :3])
    intensity = cloud[:, 3].copy()
    age_s = cloud[:, 4].copy()
    sample = Sample.of_points("bench", xyz, intensity, age_s)
    return collate(
        [
            voxelize(
                sample,
                voxel_m=_VOXEL_M,
                features=_FEATURES,
                reduce="mean",
                sensor_height_m=_HEIGHT_M,
            )
        ]
    )


def network_of(size: str) -> UNet:
    """Sparse U-Net with weights drawn from seed 0."""
    torch.manual_seed(0)
    return UNet(SIZES[size], 7)


def _forward(network: nn.Module, batch: Batch, backend: Backend, bfloat: bool = False) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat):
        return network(SparseTensor(batch.feats, Sites(batch.coords, backend))).feats


# --- time -----------------------------------------------------------------------------------------


def _arms(network: UNet, batch: Batch) -> dict[str, Callable[[], object]]:
    """Everything that is timed on a point cloud, by name: network passes and matrix products."""

    def step(backend: Backend, bfloat: bool = False) -> None:
        network.zero_grad()
        out = _forward(network, batch, backend, bfloat)
        out.backward(torch.ones_like(out))

    def forward(backend: Backend, bfloat: bool = False) -> None:
        with torch.no_grad():
            _forward(network, batch, backend, bfloat)

    square = torch.randn(_SIDE, _SIDE)
    small = square.bfloat16()
    skeleton = _skeleton()
    thin = torch.zeros(len(batch.coords), 1)
    return {
        "step, float32": lambda: step("native"),
        "step, bf16": lambda: step("native", True),
        "spconv step": lambda: step("spconv"),
        "forward, float32": lambda: forward("native"),
        "forward, bf16": lambda: forward("native", True),
        "spconv forward": lambda: forward("spconv"),
        "maps": lambda: skeleton(SparseTensor(thin, Sites(batch.coords, "native"))),
        "spconv maps": lambda: skeleton(SparseTensor(thin, Sites(batch.coords, "spconv"))),
        "mm float32": lambda: square @ square,
        "mm bf16": lambda: small @ small,
    }


def _skeleton() -> Callable[[SparseTensor], None]:
    """Network of one channel: all kernel maps, next to no arithmetic."""
    flat = SubMConv3d(1, 1)
    down = Down(1, 1)
    up = Up(1, 1)

    def run(x: SparseTensor) -> None:
        with torch.no_grad():
            for _ in range(4):
                x = flat(x)
                below = down(x)
                up(below, x.sites)
                x = below
            flat(x)

    return run


def _race(arms: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Median milliseconds of each network pass, interleaved in turns.

    One round that compiles and fills caches comes first.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    end = time.perf_counter() + seconds
    while len(times["maps"]) < 4 or time.perf_counter() < end:
        for name, run in arms.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(spent[1:]) for name, spent in times.items()}


def _gflop(size: str, batch: Batch) -> float:
    """Arithmetic of the sparse convolutions of a forward pass [GFLOP].

    In 10^9 products and sums.
    """
    total = 0

    def add(op: SubMConv3d | Down | Up | Pointwise, inputs: tuple, out: SparseTensor) -> None:
        nonlocal total
        if isinstance(op, SubMConv3d):
            pairs = len(out.sites.submanifold.pairs.source)
        else:
            pairs = max(len(inputs[0].sites), len(out.sites))
        total += 2 * pairs * op.weight.shape[0] * op.weight.shape[-1]

    network = network_of(size)
    for module in network.modules():
        if isinstance(module, SubMConv3d | Down | Up | Pointwise):
            module.register_forward_hook(add)
    with torch.no_grad():
        _forward(network, batch, "native")
    return total / 1e9


def _rates(label: str, times: dict[str, float], gflop: float, bars: bool) -> Iterator[Row]:
    """Arithmetic rate of a training step as a share of that of one large matrix product.

    Of a whole step, maps, norms and all.
    """
    for kind in ("float32", "bf16"):
        ours = gflop / times[f"step, {kind}"] * 1e3
        machine = 2 * _SIDE**3 / times[f"mm {kind}"] / 1e6
        bar = 0.6 if bars and kind == "float32" else None
        peer = f"torch.mm of {_SIDE}^2, {kind}"
        name = f"{label}: rate of a step, {kind}"
        yield Row(
            name=name,
            unit="GFLOP/s",
            ours=ours,
            peer_name=peer,
            peer=machine,
            ratio=ours / machine,
            bar=bar,
        )


# --- errors ---------------------------------------------------------------------------------------


def _errors(label: str, batch: Batch, peer: str) -> Iterator[Row]:
    """Numerical errors of a submanifold convolution, the worst as a share of its largest output."""
    torch.manual_seed(0)
    op = SubMConv3d(32, 32)
    feats = torch.randn(len(batch.coords), 32)

    def run(backend: Backend) -> Tensor:
        with torch.no_grad():
            return op(SparseTensor(feats, Sites(batch.coords, backend))).feats

    exact = _exact(op, feats, batch.coords)
    scale = exact.abs().max().item()
    backends: list[Backend] = ["native", *["spconv"] * 5]  # type: ignore[list-item]
    ours, *theirs = [(run(backend) - exact).abs().max().item() / scale for backend in backends]
    name = f"{label}: worst error of a layer against float64, five runs of the peer"
    yield _row(name, "of the largest", ours, peer, max(theirs), None)
    near = (batch.coords[:, 1:].abs() < _CROP).all(1)
    coords = batch.coords[near]
    some = feats[near]
    with torch.no_grad():
        ours_near = op(SparseTensor(some, Sites(coords, "native"))).feats
        dense = _dense(op, some, coords)
    error = (ours_near - dense).abs().max().item() / scale
    yield _row(
        f"{label}: worst error against dense conv3d near the car",
        "of the largest",
        error,
        "allowed",
        1e-5,
        1.0,
    )


def _exact(op: SubMConv3d, feats: Tensor, coords: Tensor) -> Tensor:
    with torch.no_grad():
        twin = SubMConv3d(feats.shape[1], len(op.weight)).double()
        twin.load_state_dict(op.state_dict())
        return twin(SparseTensor(feats.double(), Sites(coords, "native"))).feats


def _dense(op: SubMConv3d, feats: Tensor, coords: Tensor) -> Tensor:
    x, y, z = (coords[:, 1:] + _CROP).long().unbind(1)
    volume = torch.zeros(1, feats.shape[1], *(2 * _CROP,) * 3)
    volume[0, :, x, y, z] = feats.t()
    return nn.functional.conv3d(volume, op.weight.permute(0, 4, 1, 2, 3), padding=1)[
        0, :, x, y, z
    ].t()


# --- memory ---------------------------------------------------------------------------------------


def _peak_mb(cloud: Float32[np.ndarray, "n 5"], size: str, backend: Backend, bfloat: bool) -> float:
    """Peak memory of two training steps in a fresh process that has its network and batch.

    There glibc gives large blocks back at once: otherwise holes in its heap add a third, and as
    much again as noise.
    """
    set_before = {name: os.environ.get(name) for name in _MALLOC}
    os.environ.update(_MALLOC)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            return pool.apply(
                _steps_in_child, (cloud, size, backend, bfloat, torch.get_num_threads())
            )
    finally:
        for name, value in set_before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _steps_in_child(
    cloud: np.ndarray, size: str, backend: Backend, bfloat: bool, threads: int
) -> float:
    torch.set_num_threads(threads)
    batch = batch_of(cloud)
    network = network_of(size)
    warm = batch_of(cloud[:: max(1, len(cloud) // 200)])  # loads libraries and compiled code
    name = "spconv step" if backend == "spconv" else f"step, {'bf16' if bfloat else 'float32'}"
    with _spconv_trains():
        _arms(network, warm)[name]()
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again
        before = _status_mb("VmRSS")
        for _ in range(2):
            _arms(network, batch)[name]()
    return _status_mb("VmHWM") - before


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(key)) / 1e3

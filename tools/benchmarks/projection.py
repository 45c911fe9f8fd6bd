"""Benchmark of projection, sweep merging and label fusion against nuscenes-devkit and NumPy.

Both sides run interleaved in one process.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipsweep.pipeline.labels import LabelsConfig, load_space
from clipsweep.projection.cameras import project
from clipsweep.projection.frames import Cloud, Frame, PixelLabels, SweepLayout
from clipsweep.projection.fusion import FusionConfig, label_scene
from clipsweep.projection.grid import cell_keys
from clipsweep.projection.sweeps import merge
from clipsweep.projection.votes import vote_in_cells
from clipsweep.tools.benchmarks import samples
from clipsweep.tools.benchmarks.row import Row

SAMPLES = ("nuscenes-0523", "pandaset-002")
_SWEEPS = 10
_EGO_BOX_M = 1.0
_LAYOUT = SweepLayout(ego_box_m=_EGO_BOX_M)
_CELL_M = 0.2
_CLASSES = 16
_TURN_S = 0.02
_GRID_HW = (256, 512)


def rows(data_root: Path, seconds: float = 4.0) -> Iterator[Row]:
    """Benchmark rows of the real samples under ``data_root``; absent ones are left out.

    Args:
        data_root: folder of the samples.
        seconds: time spent on each row.
    """
    for name in SAMPLES:
        if (data_root / name).is_dir():
            devkit = samples.open_devkit(data_root / name)
            frames = samples.frames(devkit, _SWEEPS)
            # the first that has all its sweeps
            frame = max(frames, key=lambda frame: len(frame.sweeps))
            yield from _project(name, devkit, frame, seconds)
            yield _merge(name, devkit, frame, seconds)
            yield from _fuse(name, frame, seconds)
            yield _label(name, frames)


def _race(ours: Callable[[], Any], peer: Callable[[], Any], seconds: float) -> tuple[float, float]:
    """Median milliseconds of both sides, interleaved in turns of at least 20 ms.

    A run that compiles and fills caches comes first.
    """
    sides = (ours, peer)
    repeats = [max(1, int(_TURN_S / min(_spent(run, 1), _spent(run, 1)))) for run in sides]
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < 3 or time.perf_counter() < end:
        for run, repeat, spent in zip(sides, repeats, times, strict=True):
            spent.append(_spent(run, repeat) / repeat * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])


def _spent(run: Callable[[], Any], repeat: int) -> float:
    """Seconds that ``repeat`` runs take."""
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return time.perf_counter() - start


def _row(name: str, unit: str, ours: float, peer_name: str, peer: float, bar: float | None) -> Row:
    return Row(
        name=name, unit=unit, ours=ours, peer_name=peer_name, peer=peer, ratio=peer / ours, bar=bar
    )


def _project(sample: str, devkit: Any, frame: Frame, seconds: float) -> Iterator[Row]:
    pose = frame.sweeps[0].global_from_lidar
    cloud = merge(frame, 1, SweepLayout())
    record = devkit.get("sample_data", frame.id)
    tokens = devkit.get("sample", record["sample_token"])["data"]

    def peer() -> None:
        for camera in frame.cameras:
            devkit.explorer.map_pointcloud_to_image(frame.id, tokens[camera.name])

    peer_name = "nuscenes-devkit map_pointcloud_to_image, six times"
    times = _race(lambda: project(cloud.xyz, pose, frame.cameras), peer, seconds)
    yield _row(
        f"{sample}: project a key frame into six cameras", "ms", times[0], peer_name, times[1], 60.0
    )

    def read_too() -> None:
        project(merge(frame, 1, SweepLayout()).xyz, pose, frame.cameras)

    times = _race(read_too, peer, seconds)
    yield _row(
        f"{sample}: the same, reading the sweep as the peer does",
        "ms",
        times[0],
        peer_name,
        times[1],
        None,
    )


def _merge(sample: str, devkit: Any, frame: Frame, seconds: float) -> Row:
    from nuscenes.utils.data_classes import LidarPointCloud

    sample_record = devkit.get("sample", devkit.get("sample_data", frame.id)["sample_token"])

    def peer() -> None:
        LidarPointCloud.from_file_multisweep(
            devkit, sample_record, "LIDAR_TOP", "LIDAR_TOP", _SWEEPS, _EGO_BOX_M
        )

    times = _race(lambda: merge(frame, _SWEEPS, _LAYOUT), peer, seconds)
    return _row(
        f"{sample}: merge {len(frame.sweeps)} sweeps",
        "ms",
        times[0],
        "from_file_multisweep",
        times[1],
        4.0,
    )


def _fuse(sample: str, frame: Frame, seconds: float) -> Iterator[Row]:
    cloud = merge(frame, _SWEEPS, _LAYOUT)
    random = np.random.default_rng(0)
    label = random.integers(0, _CLASSES, len(cloud.xyz)).astype(np.uint8)
    weight = random.random(len(label), np.float32)

    def ours() -> np.ndarray:
        return fuse_cloud(cloud, label, weight)

    times = _race(ours, lambda: _fuse_numpy(cloud, label, weight), seconds)
    name = f"{sample}: cells and votes of {len(label)} points"
    yield _row(name, "ms", times[0], "np.unique(axis=0) + np.add.at", times[1], 10.0)
    tracemalloc.start()
    ours()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    allowed = 10 * sum(part.nbytes for part in (cloud.xyz, label, weight, weight)) / 1e6
    yield _row(
        f"{sample}: peak memory of the same", "MB", peak, "ten times the input", allowed, 1.0
    )


def _label(sample: str, frames: Sequence[Frame]) -> Row:
    """Times the label fusion from files and pixel labels to point labels, a key frame, warm.

    The pixel labels are random blocks, which cost as much time as true ones.
    """
    random = np.random.default_rng(0)
    pixels = {
        frame.id: [
            PixelLabels(
                random.integers(0, _CLASSES, _GRID_HW).astype(np.uint8),
                np.ones(_GRID_HW, np.float16),
            )
            for _ in frame.cameras
        ]
        for frame in frames
    }
    limits = load_space(LabelsConfig()).limits

    def run() -> None:
        read = lambda frame: pixels[frame.id]  # noqa: E731
        for _ in label_scene(frames, read, FusionConfig(), _CLASSES, _LAYOUT, limits):
            pass

    run()
    ours = statistics.median(_spent(run, 1) for _ in range(5)) / len(frames) * 1e3
    return _row(
        f"{sample}: fuse a key frame ({len(frames)} of a scene)", "ms", ours, "allowed", 30.0, None
    )


def fuse_cloud(cloud: Cloud, label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Baseline fusion: labels a point cloud by the majority of its votes in voxels of 0.4 m."""
    cell = cell_keys(cloud.xyz, _CELL_M)
    return vote_in_cells(cell, label, weight, _CLASSES, cell)


def _fuse_numpy(cloud: Cloud, label: np.ndarray, weight: np.ndarray) -> np.ndarray:
    cells = np.floor(cloud.xyz.astype(np.float64) / _CELL_M).astype(np.int32)
    distinct, inverse = np.unique(cells, axis=0, return_inverse=True)
    sums = np.zeros((len(distinct), _CLASSES))
    np.add.at(sums, (inverse, label), weight)
    return sums.argmax(axis=1)[inverse]

"""The GPU benchmark, on the CPU: every part runs, and one that fails is told of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clipsweep.pipeline.config import Config
from clipsweep.projection.errors import BadInput
from clipsweep.tools import bench
from clipsweep.tools.benchmarks import gpu, gpu_training
from clipsweep.tools.benchmarks.row import Row
from tests.distill.tiny_clip import one_thread

__all__ = ["one_thread"]  # a fixture for every test here

SMALL = (
    *("demo.train_scenes=1", "demo.val_scenes=1", "demo.key_frames=3", "demo.azimuths=240"),
    *("demo.width_px=160", "demo.height_px=90", "data.nuscenes.version=v1.0-mini"),
    *("data.train=mini_train", "data.eval=mini_val", "train.batch_size=2"),
)


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs_on_a_cpu(
    samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_training, "_STEPS", 8)
    monkeypatch.setattr(gpu_training, "LOADERS", (1,))
    monkeypatch.setattr(gpu, "_FIT_STEPS", 3)
    made = list(gpu.rows(samples, "cpu", sizes=("tiny",), sweeps=(1,), demo=SMALL))
    names = [row["name"] for row in made]
    assert [row["name"] for row in made if row["unit"] == gpu.FAILED] == []
    for expected in (
        "forward on cpu",
        "training step on cpu",
        "difference of outputs",
        "difference of gradients",
        "training step, bf16",
        "label JPEGs",
        "decode those JPEGs",
        "demo training on cpu",
        "1 loader(s)",
        "gloo all_reduce",
        "tests of pytest -m gpu",
    ):
        assert any(expected in name for name in names), expected
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in made[:-1])
    same = [row for row in made if "difference" in row["name"]]
    assert all(row["ours"] < 1e-5 for row in same)  # on a CPU both sides are the native backend


def test_a_part_that_fails_is_named_and_the_others_are_measured() -> None:
    def broken() -> Iterator[Row]:
        yield gpu.faster("first", "ms", 1.0, "peer", 2.0)
        raise RuntimeError("out of memory")

    def whole() -> Iterator[Row]:
        yield gpu.faster("other", "ms", 1.0, "peer", 2.0)

    made = list(gpu.measured({"networks": broken, "labelling": whole}))
    assert [row["name"] for row in made] == [
        "first",
        "networks: RuntimeError: out of memory",
        "other",
    ]
    assert [row["unit"] for row in made] == ["ms", gpu.FAILED, "ms"]


def test_a_failed_part_ends_the_benchmark_with_an_error(
    tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(*_: object) -> Iterator[Row]:
        yield gpu.faster("step", "ms", 1.0, "peer", 2.0)
        yield {**gpu.faster("nccl: no", "ms", 1.0, "peer", 2.0), "unit": gpu.FAILED}

    monkeypatch.setattr(gpu, "rows", rows)
    with pytest.raises(BadInput, match="nccl: no: could not be measured"):
        bench.run("gpu", [], Config(), bench.Arguments(str(tmp_path)))
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 2
    with pytest.raises(BadInput, match="device: is given, which sparse does not have"):
        bench.run("sparse", [], Config(), bench.Arguments(str(tmp_path), device="cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="torch sees none"):
        list(gpu.rows(tmp_path))

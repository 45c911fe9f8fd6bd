"""Training on two workers, by torchrun and by Ray Train: the losses of one, and a lost worker changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.config import load_config
from pipeline.loaders import training_batches
from pipeline.trainers import wants_ray
from projection.errors import BadInput
from tests.helpers import Run, settings

STEPS = 21


def given(root: Path, store: Path) -> list[str]:
    """A training of 21 steps whose roundings stay small, see ``tests/distill/test_ranks.py``."""
    return [*settings(root, store), "train.epochs=14", "train.optimizer=sgd", "train.lr=1e-5", "run.checkpoint_s=0"]


@pytest.fixture(scope="module")
def two(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student of two undisturbed workers."""
    store = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "tools/pretrain.py", *given(small_world, store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())  # one line, though both ran to the end


def losses(student: Path) -> list[float]:
    steps = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    return [step["loss"] for step in steps]


@pytest.mark.slow
def test_two_workers_of_torchrun_learn_what_one_does(small_world: Path, two: Path, tmp_path: Path, tool: Run) -> None:
    one = tool("pretrain", *given(small_world, tmp_path / "store")).path
    assert one.name == two.name
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


@pytest.mark.slow
def test_a_lost_worker_of_ray_train_changes_nothing(small_world: Path, two: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray.train", exc_type=ImportError)
    store = tmp_path / "store"
    command = [sys.executable, "tools/pretrain.py", *given(small_world, store), "run.workers=2"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in store.glob("student-*/done/state.json")):
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.02)
    workers = [p for p in psutil.Process(driver.pid).children(recursive=True) if "TrainWorker" in p.name()]
    assert len(workers) == 2
    workers[-1].kill()
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0
    student = Path(said.strip())
    assert len(losses(student)) == STEPS
    assert len(list((student / "tensorboard").iterdir())) == 2  # it was started twice
    assert (student / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


def test_who_starts_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wants_ray(load_config([]))
    several = load_config(["run.workers=2"])
    assert wants_ray(several)
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert not wants_ray(several)


def test_each_worker_needs_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.loaders.ranks", lambda: 3)
    with pytest.raises(BadInput, match="3 workers"):
        next(training_batches([], lambda frame, cloud: None, load_config(["train.batch_size=2"])))  # type: ignore

"""Training on two workers, by torchrun and by Ray Train.

The losses of one, and a lost worker changes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.run.ray_train import train_on_ray, wants_ray
from clipsweep.pipeline.run.settings import RunConfig
from clipsweep.pipeline.stages.dataset import training_batches
from clipsweep.projection.errors import BadInput
from clipsweep.tools import submit
from tests.faults import bad_training
from tests.helpers import ROOT, Run, settings

ON_RAY = ("run.executor=ray", "run.workers=2")
STEPS = 21


def given(root: Path, store: Path) -> list[str]:
    """A training of 21 steps whose roundings stay small, see
    ``tests/distill/test_distributed.py``.
    """
    return [
        *settings(root, store),
        "train.epochs=14",
        "train.optimizer=sgd",
        "train.lr=1e-5",
        "run.checkpoint_s=0",
    ]


@pytest.fixture(scope="module")
def two(small_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student of two undisturbed workers."""
    store = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, f"{ROOT}/tools/pretrain.py", *given(small_world, store)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())  # one line, though both ran to the end


def losses(student: Path) -> list[float]:
    steps = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    return [step["loss"] for step in steps]


@pytest.mark.slow
def test_two_workers_of_torchrun_learn_what_one_does(
    small_world: Path, two: Path, tmp_path: Path, tool: Run
) -> None:
    one = tool("pretrain", *given(small_world, tmp_path / "store")).path
    assert one.name == two.name
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-5)


@pytest.mark.slow
def test_a_lost_worker_of_ray_train_changes_nothing(
    small_world: Path, two: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray.train", exc_type=ImportError)
    store = tmp_path / "store"
    command = [sys.executable, f"{ROOT}/tools/pretrain.py", *given(small_world, store), *ON_RAY]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in store.glob("student-*/done/state.json")):
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.02)
    workers = [
        p for p in psutil.Process(driver.pid).children(recursive=True) if "TrainWorker" in p.name()
    ]
    assert len(workers) == 2
    workers[-1].kill()
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0
    student = Path(output.strip())
    assert len(losses(student)) == STEPS
    assert len(list((student / "tensorboard").iterdir())) == 2  # it was started twice
    assert (student / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_bad_input_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray.train", exc_type=ImportError)
    # Ray's processes import tests.faults
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notes = tmp_path / "notes"
    notes.mkdir()
    with pytest.raises(BadInput, match=r"x\.bin: is truncated; copy it again"):
        train_on_ray(
            partial(bad_training, notes),
            load_config([f"store={tmp_path / 'store'}", "run.workers=1"]),
        )
    assert len(list(notes.iterdir())) == 1


class Trainer:
    """Stands in for Ray Train's: calls the training once for all workers, or loses it."""

    def __init__(self, learn: Callable[[], None], scaling_config: Any, run_config: Any) -> None:
        self.learn = learn
        self.failures = run_config.failure_config

    def fit(self) -> None:
        assert self.failures.controller_failure_limit == self.failures.max_failures == 3
        self.learn()


class Unshared(Trainer):
    def fit(self) -> None:
        """All goes well on other disks."""


@pytest.fixture
def ray_of_four(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of 4 CPUs and a GPU that needs no starting."""
    pytest.importorskip("ray.train", exc_type=ImportError)
    monkeypatch.setattr("clipsweep.pipeline.run.ray_scenes.ray_cluster", lambda run: nullcontext())
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["run.workers=5"],
            r"5 training workers take a whole CPU each, of the cluster's 4 CPUs and 1 GPUs",
        ),
        (
            ["run.workers=2", "run.gpus=0.25"],
            r"2 training workers take a whole GPU each.*or run\.gpus=0",
        ),
        (["run.workers=2", "run.address=10.0.0.1:6379", "store=artifacts"], r"store.*relative"),
    ],
)
def test_a_cluster_without_room_or_shared_folder_is_refused(
    ray_of_four: None, tmp_path: Path, given: list[str], message: str
) -> None:
    config = load_config([f"store={tmp_path}", "train.batch_size=8", *given])
    with pytest.raises(BadInput, match=message):
        train_on_ray(lambda config: None, config)


def test_how_a_training_ended_comes_back(
    ray_of_four: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([f"store={tmp_path}", "run.workers=2", "run.attempts=3"])
    train_on_ray(lambda config: None, config)
    monkeypatch.setattr("ray.train.torch.TorchTrainer", Unshared)
    with pytest.raises(BadInput, match=r"left nothing in .*nodes share"):
        train_on_ray(lambda config: None, config)


def test_who_starts_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wants_ray(load_config([]))
    assert not wants_ray(load_config(["run.workers=2"]))
    several = load_config(list(ON_RAY))
    assert wants_ray(several)
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    assert not wants_ray(several)


def test_each_worker_needs_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipsweep.pipeline.stages.dataset.world_size", lambda: 3)
    config = load_config(["train.batch_size=2"])
    with pytest.raises(BadInput, match="3 workers"):
        next(training_batches([], lambda frame, cloud: None, config, range(1)))  # type: ignore


@pytest.mark.parametrize("address", ["auto", "local"])
def test_only_a_named_cluster_is_joined(address: str) -> None:
    from clipsweep.pipeline.run.ray_scenes import ray_cluster

    refused = pytest.raises(BadInput, match=rf"run\.address: '{address}' names no cluster")
    with refused, ray_cluster(RunConfig(address=address)):
        pass


def test_without_ray_the_message_names_its_installation(
    small_world: Path, tmp_path: Path, tool: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ray", "ray.train", "ray.job_submission"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "clipsweep.pipeline.run.ray_scenes", raising=False)
    given = [*settings(small_world, tmp_path), "run.address=http://127.0.0.1:1"]
    refused = tool("label", *given, "run.executor=ray")
    assert refused.status == 1
    assert refused.err.endswith('; pip install -e ".[ray]"\n')
    for run in (partial(train_on_ray, print), partial(submit.run, "label", [])):
        with pytest.raises(BadInput, match="needs Ray"):
            run(load_config(given))

"""Scenes on a simulated cluster whose workers, nodes and drivers are killed.

Nothing lost, nothing done twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.ray_scenes import ray_cluster, run_on_ray
from clipsweep.pipeline.run.scenes import Incomplete, run_stage
from clipsweep.pipeline.run.settings import RunConfig
from clipsweep.projection.errors import BadInput
from tests.faults import Faulty
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

SCENES = [f"scene-{i}" for i in range(6)]
FAST = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A cluster that this process has joined.

    A head without room for workers, three nodes with room for one each.
    """
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "_system_config": FAST})
    for _ in range(3):
        made.add_node(num_cpus=1)
    with ray_cluster(RunConfig(address=made.address)):
        yield made
    made.shutdown()


@pytest.fixture
def worker(tmp_path: Path) -> Faulty:
    (tmp_path / "notes").mkdir()
    return Faulty(tmp_path / "notes")


def on_ray(
    store: Path, worker: Faulty, scenes: Sequence[str] = SCENES, **settings: Any
) -> Artifact:
    artifact = Artifact.of(str(store), "s", {})
    run = RunConfig(executor="ray", **{"workers": 3, "progress": False, **settings})
    return run_stage(artifact, scenes, worker.build, Config(run=run))


def clean_digest(store: Path, scenes: Sequence[str] = SCENES) -> str:
    """Digest of an undisturbed run in this process."""
    (store / "clean").mkdir(parents=True)
    artifact = Artifact.of(str(store / "clean"), "s", {})
    run_stage(
        artifact, scenes, lambda: Faulty(store / "clean"), Config(run=RunConfig(progress=False))
    )
    return artifact.manifest()["digest"]


def report(store: Path) -> dict[str, Any]:
    return json.loads((Artifact.of(str(store), "s", {}).path / "report.json").read_text())


KILLED = ("scene-3", "scene-8", "scene-13")
LOST = "scene-17"


def node_of(nodes: Cluster, process: int) -> Any:
    """The node that started a worker."""
    above = {parent.pid for parent in psutil.Process(process).parents()}
    (node,) = (
        node
        for node in nodes.worker_nodes
        if any(started.process.pid in above for started in node.all_processes["raylet"])
    )
    return node


def test_killed_workers_and_a_lost_node_change_nothing(
    nodes: Cluster,
    tmp_path: Path,
    worker: Faulty,
) -> None:
    """Each victim is held in the middle of its scene until it is struck, on any machine."""
    scenes = [f"scene-{i}" for i in range(20)]
    busy = replace(worker, faults=dict.fromkeys((*KILLED, LOST), ("held",)))
    artifact = Artifact.of(str(tmp_path), "s", {})

    def strike() -> list[int]:
        """Kills three workers, then takes a fourth one's node away; answers their processes."""
        victims: list[int] = []
        try:
            for scene in KILLED:
                victims.append(busy.held(scene))
                os.kill(victims[-1], signal.SIGKILL)
            victims.append(busy.held(LOST))
            nodes.remove_node(node_of(nodes, victims[-1]), allow_graceful=False)
        except BaseException:
            busy.release()
            raise
        return victims

    room = len(nodes.worker_nodes)
    try:
        with ThreadPoolExecutor(1) as beside:
            struck = beside.submit(strike)
            run_on_ray(artifact, scenes, busy.build, RunConfig(workers=3, attempts=2))
            victims = struck.result()
        assert len(nodes.worker_nodes) == room - 1
    finally:
        for _ in range(room - len(nodes.worker_nodes)):
            nodes.add_node(num_cpus=1)
    assert len(set(victims)) == 4
    alive = [psutil.Process(victim) for victim in victims if psutil.pid_exists(victim)]
    assert not psutil.wait_procs(alive, timeout=60)[1]
    summary = report(tmp_path)
    assert (summary["expected"], summary["done"], summary["given_up"], summary["left"]) == (
        20,
        20,
        {},
        0,
    )
    assert set(summary["retried"]) == {*KILLED, LOST}
    assert all(len(reasons) == 1 for reasons in summary["retried"].values())
    calls = {scene: busy.calls(scene) for scene in scenes}
    assert [calls[scene][0] for scene in (*KILLED, LOST)] == victims
    assert {scene for scene in scenes if len(calls[scene]) == 2} == {*KILLED, LOST}
    assert sum(map(len, calls.values())) == 20 + 4
    on_ray(tmp_path, busy, scenes)
    assert {scene: busy.calls(scene) for scene in scenes} == calls
    assert artifact.manifest()["digest"] == clean_digest(tmp_path, scenes)
    assert artifact.manifest()["counts"] == {"calls": 20}


def test_what_always_fails_is_given_up_and_the_rest_done(
    nodes: Cluster, tmp_path: Path, worker: Faulty
) -> None:
    faults = {
        "scene-0": ("memory",),
        "scene-1": ("killed",),
        "scene-2": ("killed",) * 9,
        "scene-3": ("bad input",) * 9,
    }
    with pytest.raises(
        Incomplete, match=r"2 of 6 shards could not be made.* the same command tries these again"
    ):
        on_ray(tmp_path, replace(worker, faults=faults), attempts=2)
    artifact = Artifact.of(str(tmp_path), "s", {})
    summary = report(tmp_path)
    assert not artifact.whole
    assert [scene for scene in SCENES if artifact.done(scene, verify=True)] == [
        SCENES[i] for i in (0, 1, 4, 5)
    ]
    assert (summary["expected"], summary["kept"], summary["done"], summary["left"]) == (6, 0, 4, 0)
    assert set(summary["retried"]) == {"scene-0", "scene-1"}
    assert "MemoryError" in summary["retried"]["scene-0"][0]
    assert set(summary["given_up"]) == {"scene-2", "scene-3"}
    assert [len(summary["given_up"][scene]) for scene in ("scene-2", "scene-3")] == [2, 1]
    assert "x.jpg: is no JPEG" in summary["given_up"]["scene-3"][0]
    assert [len(worker.calls(scene)) for scene in SCENES] == [2, 2, 2, 1, 1, 1]
    on_ray(tmp_path, worker)
    assert [len(worker.calls(scene)) for scene in SCENES] == [2, 2, 3, 2, 1, 1]
    summary = report(tmp_path)
    assert (summary["expected"], summary["kept"], summary["done"], summary["given_up"]) == (
        6,
        4,
        2,
        {},
    )
    assert artifact.manifest()["digest"] == clean_digest(tmp_path)


def test_a_run_in_which_too_much_fails_is_stopped(
    nodes: Cluster, tmp_path: Path, worker: Faulty
) -> None:
    wrong = replace(worker, faults=dict.fromkeys(SCENES, ("bad input",)))
    with pytest.raises(Incomplete, match=r"run\.failures=1 .*x\.jpg: is no JPEG"):
        on_ray(tmp_path, wrong, workers=1, failures=1)
    summary = report(tmp_path)
    assert (len(summary["given_up"]), summary["left"]) == (2, 4)


def test_a_hung_scene_is_overtaken_and_one_that_always_hangs_given_up(
    nodes: Cluster, tmp_path: Path, worker: Faulty
) -> None:
    faults = {"scene-1": ("hung",), "scene-4": ("hung",) * 9}
    with pytest.raises(
        Incomplete, match=r"1 of 6 shards .* scene-4 after 2 attempt.*not done within 15 s"
    ):
        on_ray(tmp_path, replace(worker, faults=faults), attempts=2, deadline_s=15.0)
    assert Artifact.of(str(tmp_path), "s", {}).done("scene-1", verify=True)
    assert [len(worker.calls(scene)) for scene in SCENES] == [1, 2, 1, 1, 2, 1]
    on_ray(tmp_path, worker)
    assert len(worker.calls()) == 9
    assert Artifact.of(str(tmp_path), "s", {}).manifest()["digest"] == clean_digest(tmp_path)


def test_hung_workers_that_hold_all_the_room_are_replaced(
    nodes: Cluster, tmp_path: Path, worker: Faulty
) -> None:
    faults = dict.fromkeys(SCENES[:3], ("hung",))
    artifact = on_ray(tmp_path, replace(worker, faults=faults), attempts=2, deadline_s=15.0)
    assert artifact.whole
    assert [len(worker.calls(scene)) for scene in SCENES] == [2, 2, 2, 1, 1, 1]
    assert set(report(tmp_path)["retried"]) == set(SCENES[:3])


def test_a_full_disk_stops_the_run_and_corrupts_nothing(
    nodes: Cluster, tmp_path: Path, worker: Faulty
) -> None:
    with pytest.raises(OSError, match=r"No space left on device.*scene-3\.safetensors"):
        on_ray(tmp_path, replace(worker, faults={"scene-3": ("full disk",)}), workers=1)
    artifact = Artifact.of(str(tmp_path), "s", {})
    assert [scene for scene in SCENES if artifact.done(scene, verify=True)] == SCENES[:3]
    assert not list(artifact.path.rglob("*.tmp"))
    summary = report(tmp_path)
    assert (summary["done"], summary["left"]) == (3, 3)
    on_ray(tmp_path, worker)
    assert [len(worker.calls(scene)) for scene in SCENES] == [1, 1, 1, 2, 1, 1]
    assert artifact.manifest()["digest"] == clean_digest(tmp_path)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_and_any_order_give_the_same(
    nodes: Cluster, tmp_path: Path, worker: Faulty, workers: int
) -> None:
    """Five are more than the cluster has room for."""
    artifact = Artifact.of(str(tmp_path), "s", {})
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        assert len(worker.calls()) <= done + workers  # no more scenes under way than workers

    shuffled = random.Random(workers).sample(SCENES, len(SCENES))
    run_on_ray(artifact, shuffled, worker.build, RunConfig(workers=workers), tick=tick)
    on_ray(tmp_path, worker)
    assert artifact.manifest()["digest"] == clean_digest(tmp_path)
    assert len(worker.calls()) == len(SCENES)


def test_without_room_for_any_worker_the_run_ends_and_says_what_it_wants(
    nodes: Cluster, tmp_path: Path
) -> None:
    artifact = Artifact.of(str(tmp_path), "s", {})
    run = RunConfig(gpus=1.0, deadline_s=1.0, attempts=2)
    with pytest.raises(
        Incomplete, match=r"no worker could be started .*1 GPU of the cluster's 3 CPUs and 0 GPUs"
    ):
        run_on_ray(artifact, SCENES, Faulty(tmp_path).build, run, gpu=True)


def cannot_build() -> Faulty:
    raise BadInput("weights", "are not there", "fetch them")


def test_a_worker_that_cannot_be_built_is_bad_input_as_it_is_locally(
    nodes: Cluster, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="weights: are not there"):
        run_on_ray(Artifact.of(str(tmp_path), "s", {}), SCENES, cannot_build, RunConfig())


def test_progress_shows_rate_and_remaining_time(
    nodes: Cluster, tmp_path: Path, worker: Faulty, capfd: pytest.CaptureFixture[str]
) -> None:
    on_ray(tmp_path, replace(worker, seconds=0.3), progress=True)
    err = capfd.readouterr().err
    assert "6/6" in err
    assert "shard/s]" in err or "s/shard]" in err
    assert "<00:0" in err


def test_relative_folders_are_refused_on_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"store.*relative.*full path"):
        on_ray(Path("artifacts"), Faulty(tmp_path), address="127.0.0.1:1")


DRIVER = """
import sys
from pathlib import Path
from tests.faults import Faulty
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.scenes import run_stage
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.run.settings import RunConfig
config = Config(run=RunConfig(executor="ray", workers=2, progress=False))
worker = Faulty(Path(sys.argv[1]) / "notes", {"scene-11": ("killed",)}, seconds=0.3)
scenes = [f"scene-{i}" for i in range(12)]
run_stage(Artifact.of(sys.argv[1], "s", {}), scenes, worker.build, config)
"""


def test_a_killed_driver_leaves_nothing_running_and_its_work_is_taken_up(
    tmp_path: Path, worker: Faulty
) -> None:
    """The driver's own instance; ``RAY_ADDRESS`` names another cluster, and must not matter."""
    command = [sys.executable, "-c", DRIVER, str(tmp_path)]
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "PYTHONPATH": str(ROOT)}
    victim = subprocess.Popen(command, env=environment)
    artifact = Artifact.of(str(tmp_path), "s", {})
    deadline = time.time() + 60
    while len(list(artifact.path.glob("done/*"))) < 4:
        assert time.time() < deadline
        assert victim.poll() is None
        time.sleep(0.02)
    family = psutil.Process(victim.pid).children(recursive=True)
    agents = [process for process in family if process.name().endswith("Agent")]
    victim.kill()
    victim.wait()
    assert not psutil.wait_procs(set(family) - set(agents), timeout=30)[1]
    for process in agents:  # they go too, after trying for a minute to report what happened
        process.kill()
    scenes = [f"scene-{i}" for i in range(12)]
    done = [scene for scene in scenes if artifact.done(scene)]
    before = [len(worker.calls(scene)) for scene in done]
    assert 4 <= len(done) < 12
    assert not artifact.whole
    again = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert again.stdout == ""
    assert list(report(tmp_path)["retried"]) == ["scene-11"]
    assert [len(worker.calls(scene)) for scene in done] == before
    assert artifact.manifest()["digest"] == clean_digest(tmp_path, scenes)
    assert report(tmp_path)["kept"] == len(done)

"""A tool as a job on a Ray head on loopback: its artifact, its log and its status come back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import load_config
from clipsweep.projection.errors import BadInput
from clipsweep.tools import submit
from tests.helpers import ROOT, Run, settings

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A Ray head: its dashboard's address and its folder."""

    address: str
    folder: Path

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, f"{ROOT}/tools/submit.py", *arguments]
        environment = {**os.environ, "RAY_ADDRESS": self.address}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    port, agent, client = free_ports(3)
    with tempfile.TemporaryDirectory(
        prefix="cs-", dir="/tmp", ignore_cleanup_errors=True
    ) as folder:
        node = (
            "--head",
            "--port=0",
            "--node-ip-address=127.0.0.1",
            "--num-cpus=2",
            f"--temp-dir={folder}",
            "--block",
        )
        dashboard = (
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={port}",
            f"--dashboard-agent-listen-port={agent}",
        )
        environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": ""}
        command = [
            str(BIN / "ray"),
            "start",
            *node,
            *dashboard,
            f"--ray-client-server-port={client}",
        ]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        address = f"http://127.0.0.1:{port}"
        deadline = time.time() + 90
        try:
            while not answers(f"{address}/api/version"):
                assert process.poll() is None
                assert time.time() < deadline
                time.sleep(0.5)
            yield Head(address, Path(folder))
        finally:
            process.terminate()
            process.wait(60)


def free_ports(count: int) -> list[int]:
    """Loopback ports without a listener; Ray's usual ones may belong to another instance."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in found]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError:
        return True  # it wants a token
    except OSError:
        return False


@pytest.mark.slow
def test_a_labelling_is_done_by_the_cluster(
    head: Head, small_world: Path, tmp_path: Path, tool: Run
) -> None:
    local = tool("label", *settings(small_world, tmp_path / "local")).path
    done = head.submit("label", *settings(small_world, tmp_path / "jobs"), "run.workers=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/jobs/{local.name}\n"
    assert (
        Artifact(Path(done.stdout.strip())).manifest()["digest"]
        == Artifact(local).manifest()["digest"]
    )
    assert list((tmp_path / "jobs").glob("points-*/report.json"))
    (sent,) = head.folder.glob("session_latest/runtime_resources/working_dir_files/_ray_pkg_*/")
    assert (sent / "tools/label.py").is_file()
    assert not {".git", "artifacts", "demo-data", "__pycache__"} & {
        path.name for path in sent.iterdir()
    }


@pytest.mark.slow
def test_the_status_of_a_job_that_fails_comes_back(
    head: Head, small_world: Path, tmp_path: Path
) -> None:
    failed = head.submit("label", *settings(small_world, tmp_path), "data.eval=nowhere")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "has no scene of 'nowhere'" in failed.stderr
    assert head.submit("label", *settings(small_world, tmp_path), "--wrong").returncode == 2


def test_only_a_named_cluster_is_used(
    small_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for address in ("", "auto", "127.0.0.1:6379"):
        config = load_config([*settings(small_world, tmp_path), f"run.address={address}"])
        with pytest.raises(BadInput, match=r"run\.address.*no address of a cluster's dashboard"):
            submit.run("label", [], config)


def test_relative_folders_are_refused(small_world: Path) -> None:
    config = load_config(
        [*settings(small_world, Path("artifacts")), "run.address=http://127.0.0.1:1"]
    )
    with pytest.raises(BadInput, match=r"store.*relative"):
        submit.run("label", [], config)


def test_the_command_names_files_as_the_job_finds_them_and_quotes(tmp_path: Path) -> None:
    given = [
        f"{ROOT}/configs/data/../data/nuscenes.yaml",
        "data.root=/a b",
        "run.address=http://127.0.0.1:1",
    ]
    call = "python tools/label.py configs/data/nuscenes.yaml 'data.root=/a b' run.executor=ray "
    call += 'run.address="${RAY_ADDRESS:?}"'
    assert submit.command("label", given) == f'made=$({call}) && printf "result: %s\\n" "$made"'
    with pytest.raises(BadInput, match="is not below"):
        submit.command("label", [str(tmp_path / "mine.yaml")])
    for wrong in ("", "submit", "lable", "../setup"):
        with pytest.raises(BadInput, match="is no tool"):
            submit.command(wrong, [])


def test_stores_inside_the_folder_are_left_out(tmp_path: Path) -> None:
    config = load_config([f"store={submit.ROOT / 'out/store'}", f"data.root={tmp_path}"])
    assert submit.left_out(config)[-1] == "/out/store"
    assert str(tmp_path) not in " ".join(submit.left_out(config))

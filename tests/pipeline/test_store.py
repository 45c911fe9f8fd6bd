"""Artifacts are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from clipsweep.pipeline.artifacts import store
from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.store import Artifact, Part
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.scenes import Shard, run_stage
from clipsweep.pipeline.run.settings import RunConfig
from clipsweep.projection.errors import BadInput

QUIET = Config(run=RunConfig(progress=False))
ARRAYS = {"a": np.arange(5, dtype=np.int32)}


class Counting:
    """A worker that records its calls."""

    def __init__(self) -> None:
        self.scenes: list[str] = []

    def __call__(self, scene: str) -> Shard:
        self.scenes.append(scene)
        return Shard({"x": np.frombuffer(scene.encode(), np.uint8)}, counts={"n": 1})


def digest(artifact: Artifact) -> str:
    return artifact.manifest()["digest"]


def test_name_depends_on_key_and_inputs_only(tmp_path: Path) -> None:
    one = Artifact.of(str(tmp_path), "pixels", {"a": 1, "b": 2})
    assert one.id == Artifact.of(str(tmp_path / "elsewhere"), "pixels", {"b": 2, "a": 1}).id
    assert one.id != Artifact.of(str(tmp_path), "pixels", {"a": 1, "b": 3}).id
    assert one.id != Artifact.of(str(tmp_path), "pixels", {"a": 1, "b": 2}, [one]).id
    assert one.stage == "pixels"
    assert len(one.id) == len("pixels-") + 12


def test_a_stage_is_done_once(tmp_path: Path) -> None:
    artifact = Artifact.of(str(tmp_path), "s", {})
    first = Counting()
    second = Counting()
    run_stage(artifact, ["x", "y"], lambda: first, QUIET)
    before = digest(artifact)
    run_stage(artifact, ["x", "y"], lambda: second, QUIET)
    assert (first.scenes, second.scenes) == (["x", "y"], [])
    assert digest(artifact) == before
    assert artifact.manifest()["counts"] == {"n": 2}


@pytest.mark.parametrize("damage", ["cut", "gone", "marker gone", "marker damaged"])
def test_only_a_damaged_shard_is_done_again(tmp_path: Path, damage: str) -> None:
    artifact = Artifact.of(str(tmp_path), "s", {})
    again = Counting()
    run_stage(artifact, ["x", "y"], Counting, QUIET)
    before = digest(artifact)
    payload = artifact.shard("y")
    marker = artifact.path / "done" / "y.json"
    if damage == "cut":
        payload.write_bytes(payload.read_bytes()[:-1])
    elif damage == "marker damaged":
        marker.write_text("{")
    else:
        (payload if damage == "gone" else marker).unlink()
    run_stage(artifact, ["x", "y"], lambda: again, QUIET)
    assert again.scenes == ["y"]
    assert digest(artifact) == before


def test_an_altered_shard_is_found_by_verify_and_alone_done_again(tmp_path: Path) -> None:
    artifact = Artifact.of(str(tmp_path), "s", {})
    unaware = Counting()
    again = Counting()
    run_stage(artifact, ["x", "y"], Counting, QUIET)
    before = digest(artifact)
    payload = artifact.shard("y")
    payload.write_bytes(payload.read_bytes()[:-1] + b"\xff")
    run_stage(artifact, ["x", "y"], lambda: unaware, QUIET)
    run_stage(artifact, ["x", "y"], lambda: again, replace(QUIET, verify=True))
    assert (unaware.scenes, again.scenes) == ([], ["y"])
    assert artifact.done("y", verify=True)
    assert digest(artifact) == before


@pytest.mark.parametrize(
    ("call", "nth"), [*(("fsync", n) for n in (1, 2, 3, 4)), ("replace", 1), ("replace", 2)]
)
def test_a_fault_at_any_point_of_a_commit_leaves_no_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    artifact = Artifact.of(str(tmp_path), "s", {})
    calls = 0
    where = (os, "fsync") if call == "fsync" else (Path, "replace")
    real = getattr(*where)

    def fail(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == nth:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(*where, fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*x\.(safetensors|json)'"):
        artifact.commit_arrays("x", ARRAYS)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp"))
    assert not artifact.done("x") or artifact.done("x", verify=True)
    if artifact.shard("x").exists():
        np.testing.assert_array_equal(load_file(artifact.shard("x"))["a"], ARRAYS["a"])
    artifact.commit_arrays("x", ARRAYS)
    assert artifact.done("x", verify=True)
    np.testing.assert_array_equal(artifact.arrays("x").get_tensor("a"), ARRAYS["a"])


@pytest.mark.parametrize(
    ("call", "nth"), [*(("fsync", n) for n in (1, 2, 3, 4)), ("replace", 1), ("replace", 2)]
)
def test_a_writer_killed_at_any_point_of_a_commit_leaves_no_partial_file(
    tmp_path: Path, call: str, nth: int
) -> None:
    script = KILLED_WRITER.format(call=call, nth=nth)
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    artifact = Artifact.of(str(tmp_path), "s", {})
    again = Counting()
    assert artifact.done("x") == artifact.done("x", verify=True) == ((call, nth) == ("fsync", 4))
    left = list(tmp_path.rglob("*.tmp"))
    assert len(left) == ((call, nth) not in (("fsync", 2), ("fsync", 4)))
    run_stage(artifact, ["x"], lambda: again, QUIET)
    assert list(tmp_path.rglob("*.tmp")) == left  # too young to be swept
    assert again.scenes == ["x"] * ((call, nth) != ("fsync", 4))
    assert artifact.done("x", verify=True)


def test_writers_with_the_same_process_number_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers of one cluster.

    One begins while the other is between writing and renaming.
    """
    path = tmp_path / "x"
    real = os.fsync

    def meanwhile(file: int) -> None:
        monkeypatch.setattr(os, "fsync", real)
        store.write_whole(path, b"other")
        real(file)

    monkeypatch.setattr(os, "fsync", meanwhile)
    store.write_whole(path, b"one")
    assert path.read_bytes() == b"one"


def test_orphans_of_killed_writers_are_swept_and_files_of_live_ones_are_not(tmp_path: Path) -> None:
    artifact = Artifact.of(str(tmp_path), "s", {})
    artifact.commit_arrays("x", ARRAYS)
    orphan, young = (artifact.path / f".x.safetensors.{number}.tmp" for number in (998, 999))
    orphan.write_bytes(b"half")
    young.write_bytes(b"half")
    os.utime(orphan, (time.time() - 3700,) * 2)
    run_stage(artifact, ["x", "y"], Counting, QUIET)
    assert not orphan.exists()
    assert young.exists()


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
import numpy as np
from clipsweep.pipeline.artifacts.store import Artifact, Part
owner, calls = (os if "{call}" == "fsync" else Path), 0
real = getattr(owner, "{call}")
def strike(*arguments):
    global calls
    calls += 1
    if calls == {nth}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
setattr(owner, "{call}", strike)
Artifact.of(sys.argv[1], "s", {{}}).commit_arrays("x", dict(a=np.arange(5)))
"""

SLOW_STAGE = """
import sys, time
import numpy as np
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.run.scenes import run_stage
from clipsweep.pipeline.artifacts.store import Artifact, Part
from clipsweep.pipeline.run.scenes import Shard
from clipsweep.pipeline.run.settings import RunConfig
def work(scene):
    time.sleep(0.05)
    return Shard({"x": np.full(1000, int(scene))})
config = Config(run=RunConfig(progress=False))
run_stage(Artifact.of(sys.argv[1], "s", {}), [str(i) for i in range(40)], lambda: work, config)
"""


def test_sigkill_in_the_middle_then_again_gives_the_same_digest(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLOW_STAGE]
    subprocess.run([*command, str(tmp_path / "clean")], check=True)
    victim = subprocess.Popen([*command, str(tmp_path / "killed")])
    artifact = Artifact.of(str(tmp_path / "killed"), "s", {})
    deadline = time.time() + 60
    while not artifact.done("5"):
        assert time.time() < deadline
        time.sleep(0.01)
    victim.kill()
    victim.wait()
    assert not artifact.whole
    done = {path.name: path.stat().st_mtime_ns for path in (artifact.path / "done").glob("*.json")}
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    assert digest(artifact) == digest(Artifact.of(str(tmp_path / "clean"), "s", {}))
    assert all(
        (artifact.path / "done" / name).stat().st_mtime_ns == time_ns
        for name, time_ns in done.items()
    )


def test_manifest_carries_config_and_inherited_skips(tmp_path: Path) -> None:
    lost = [Skip("f", "x", "why")]
    artifact = Artifact.of(str(tmp_path), "s", {}).holding([Part("x", "", "x", ("g",))], lost)
    run_stage(artifact, artifact.shards(), Counting, QUIET)
    assert artifact.skipped() == Artifact(artifact.path).skipped() == lost
    manifest = json.loads((artifact.path / "manifest.json").read_text())
    assert manifest["config"]["run"]["progress"] is False
    assert manifest["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
def test_a_shard_name_cannot_leave_the_artifact(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="file name"):
        Artifact.of(str(tmp_path), "s", {}).shard(name)


def test_an_unfinished_artifact_is_not_taken(tmp_path: Path) -> None:
    artifact = Artifact.of(str(tmp_path), "student", {})
    artifact.commit_arrays("model", ARRAYS)
    with pytest.raises(BadInput, match="no finished student"):
        Artifact.at(str(artifact.path), "student")


@pytest.mark.parametrize(
    "more", [{"skipped": [{"frame": 1}]}, {"skipped": 3}, {"counts": [1]}, {"counts": {"n": "1"}}]
)
def test_a_marker_that_cannot_be_read_is_none(tmp_path: Path, more: dict[str, object]) -> None:
    artifact = Artifact.of(str(tmp_path), "s", {})
    run_stage(artifact, ["x", "y"], Counting, QUIET)
    before = digest(artifact)
    marker = artifact.path / "done" / "y.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), **more}))
    with pytest.raises(BadInput, match=r"y\.safetensors: is not whole; run the tool that makes it"):
        artifact.facts("y")
    again = Counting()
    run_stage(artifact, ["x", "y"], lambda: again, QUIET)
    assert again.scenes == ["y"]
    assert digest(artifact) == before


@pytest.mark.parametrize(
    "more", [{"shards": 3}, {"key": [1]}, {"skipped": [{"frame": 1}]}, {"counts": None}]
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path: Path, more: dict[str, object]) -> None:
    artifact = Artifact.of(str(tmp_path), "s", {})
    run_stage(artifact, ["x"], Counting, QUIET)
    manifest = artifact.path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **more}))
    with pytest.raises(BadInput, match=r"manifest\.json: is no manifest; delete it and run again"):
        run_stage(artifact, ["x"], Counting, QUIET)
    manifest.unlink()
    run_stage(artifact, ["x"], Counting, QUIET)
    assert artifact.manifest()["counts"] == {"n": 1}


def test_digest_of_ignores_order() -> None:
    assert store.digest_of({"a": 1, "b": [1, 2]}) == store.digest_of({"b": [1, 2], "a": 1})

"""No label file is opened in any stage of a run that is not given it, in any way."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from clipsweep.pipeline.config import load_config
from clipsweep.pipeline.stages.guard import LabelLeak, closed_files, label_guard, no_labels
from clipsweep.pipeline.stages.index import make_index, scene_frames, scenes_of
from tests.helpers import ROOT, Run, settings
from tests.saboteur import BESIDE_PYTHON, FROM_PYTHON, sabotage

STAGES = ("pixels", "poses", "points", "data loader", "checkpoint")


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT}/.src", **more}


@pytest.fixture(scope="session")
def landlock() -> None:
    """Skips where the kernel lacks it; asked without the code under test."""
    if ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)) < 2:
        pytest.skip("this kernel has no Landlock: the audit hook alone guards labels here")


def plant(world: Path, elsewhere: Path, label: Path) -> dict[str, str]:
    """A label file and all that leads to labels, by what it is called in the record."""
    elsewhere.mkdir()
    hard = world / "samples/hard.bin"
    foreign = elsewhere / "hard.bin"
    link = elsewhere / "symlink.bin"
    target = elsewhere / "target.bin"
    below = world / "panoptic/v1.0-mini/more/below"
    for path in (hard, foreign):
        path.hardlink_to(label)
    link.symlink_to(label)
    below.mkdir(parents=True)
    for path in (target, below / "sub.bin"):
        path.write_bytes(label.read_bytes())
    (world / "panoptic/v1.0-mini/annexed.bin").symlink_to(target)
    return {
        "label file": str(label),
        "symlink": str(link),
        "hard link": str(hard),
        "foreign hard link": str(foreign),
        "sub-folder": str(below / "sub.bin"),
        "target of a symlink": str(target),
    }


def run_sabotaged(
    tool: str, planted: dict[str, str], folder: Path, *arguments: str
) -> tuple[Path, list[dict[str, str]]]:
    """Runs a tool whose stages try to read what is planted: its result, and the attempts."""
    names = folder / "planted.json"
    names.write_text(json.dumps(planted))
    record = folder / "record.json"
    command = [sys.executable, f"{ROOT}/tests/saboteur.py", tool, str(record), str(names)]
    there = folder / "renamed"
    there.mkdir()
    made = subprocess.run(
        [*command, *arguments],
        env=environment(ELSEWHERE=str(there)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return Path(made.stdout.strip()), read(record)


def read(record: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def check_refused(
    rows: list[dict[str, str]], planted: Iterable[str], stages: Iterable[str], ways: Iterable[str]
) -> None:
    """Every way was tried in every stage, and refused."""
    assert {(row["stage"], row["file"], row["way"]) for row in rows} == {
        (stage, file, way)
        for stage in stages
        for file in planted
        for way in (FROM_PYTHON if file == "foreign hard link" else ways)
    }
    for row in rows:
        sign = "LabelLeak: " if row["way"] in FROM_PYTHON else "ermission denied"
        assert sign in row["outcome"], row


@pytest.mark.usefixtures("landlock")
def test_no_stage_of_an_annotation_free_run_reads_a_label(world: Path, tmp_path: Path) -> None:
    label = next((world / "lidarseg").rglob("*.bin"))
    planted = plant(world, tmp_path / "elsewhere", label)
    planted["table of boxes"] = str(world / "v1.0-mini/sample_annotation.json")
    given = [*settings(world, tmp_path / "store"), "run.loaders=1"]
    student, rows = run_sabotaged("pretrain", planted, tmp_path, *given)
    check_refused(rows, planted, STAGES, (*FROM_PYTHON, *BESIDE_PYTHON))
    for stage in ("pixels", "poses", "points", "student"):
        (made,) = student.parent.glob(f"{stage}-*")
        assert json.loads((made / "manifest.json").read_text())["label_guard"] == "landlock"


@pytest.mark.usefixtures("landlock")
def test_finetuning_reads_no_label_outside_its_protocol(world: Path, tmp_path: Path) -> None:
    given = [*settings(world, tmp_path / "store"), "protocol=frame@50%"]
    given += ["finetune.unlabelled=none"]
    config = load_config(given)
    index = make_index(config)
    labels = {
        role: [
            frame.labels.path
            for scene in scenes_of(index, role)
            for frame in scene_frames(index, config, scene)
            if frame.labels
        ]
        for role in ("train", "eval")
    }
    planted = plant(world, tmp_path / "elsewhere", labels["train"][1])
    planted["held-out label file"] = str(labels["eval"][0])
    student, rows = run_sabotaged("finetune", planted, tmp_path, *given, "student=none")
    check_refused(rows, planted, STAGES[3:], (*FROM_PYTHON, *BESIDE_PYTHON))
    manifest = json.loads((student / "manifest.json").read_text())
    assert manifest["label_guard"] == "landlock"
    assert manifest["labelled_frames"] == [
        path.name.removesuffix("_lidarseg.bin") for path in labels["train"][::2]
    ]


@pytest.mark.parametrize(("name", "stages"), [("label", STAGES[:3]), ("pretrain", STAGES)])
def test_the_hook_alone_guards_all_stages_in_python(
    world: Path,
    tmp_path: Path,
    tool: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    stages: Iterable[str],
) -> None:
    planted = plant(world, tmp_path / "elsewhere", next((world / "lidarseg").rglob("*.bin")))
    sabotage(tmp_path / "record.json", planted, FROM_PYTHON, monkeypatch.setattr)
    monkeypatch.setenv("ELSEWHERE", str(tmp_path))
    made = tool(name, *settings(world, tmp_path / "store")).path
    check_refused(read(tmp_path / "record.json"), planted, stages, FROM_PYTHON)
    assert json.loads((made / "manifest.json").read_text())["label_guard"] == "audit hook"


def test_a_label_file_that_is_open_already_is_refused(world: Path, tmp_path: Path) -> None:
    config = load_config(settings(world, tmp_path / "store"))
    with (
        next((world / "lidarseg").rglob("*.bin")).open("rb"),
        pytest.raises(LabelLeak, match="open before an annotation-free run began"),
        label_guard(config),
    ):
        pass


def test_a_guard_within_a_guard_ends_alone(tmp_path: Path) -> None:
    label = tmp_path / "labels/x.label"
    label.parent.mkdir()
    label.write_bytes(b"1")
    with no_labels(closed_files([label.parent])):
        with no_labels(closed_files([label.parent])):
            pass
        with pytest.raises(LabelLeak):
            label.read_bytes()
        with pytest.raises(LabelLeak):
            label.rename(tmp_path / "x.label")
    assert label.read_bytes() == b"1"


# --- Landlock -------------------------------------------------------------------------------------

CLOSED = """
import os, sys
from clipsweep.pipeline.run.landlock import close_files
root = sys.argv[1]
close_files([f"{root}/labels", f"{root}/labels/b/shut"], [f"{root}/labels/b/given"])
for name in ("other", "beside/x", "labels/a", "labels/b/shut", "labels/b/given", "new/x"):
    os.makedirs(f"{root}/new", exist_ok=True)
    open(f"{root}/new/x", "w").close()
    try:
        open(f"{root}/{name}").close()
    except PermissionError:
        print(name)
os.replace(f"{root}/beside/x", f"{root}/beside/y")
os.replace(f"{root}/beside/y", f"{root}/inside/y")
for there in ("beside/a", "inside/a"):
    try:
        os.replace(f"{root}/labels/a", f"{root}/{there}")
    except OSError:
        print(there)
"""


@pytest.mark.usefixtures("landlock")
def test_what_landlock_closes(tmp_path: Path) -> None:
    """Also what is made later beside a closed place: the guard sees to it that nothing needs be."""
    for name in ("other", "beside/x", "inside/z", "labels/a", "labels/b/shut", "labels/b/given"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    command = [sys.executable, "-c", CLOSED, str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["labels/a", "labels/b/shut", "new/x", "beside/a", "inside/a"]


@pytest.mark.slow
@pytest.mark.usefixtures("landlock")
@pytest.mark.parametrize(("store", "guard"), [("store", "landlock"), ("", "audit hook")])
def test_a_store_above_the_labels_leaves_the_hook(
    world: Path, tmp_path: Path, store: str, guard: str
) -> None:
    """All that is made in the store would be closed with them."""
    given = [*settings(world, tmp_path / store), f"report={tmp_path}/report.png"]
    command = [sys.executable, f"{ROOT}/tools/label.py", *given]
    made = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert ("the audit hook alone guards them" in made.stderr) == (not store)
    assert "truth from label files" in made.stderr
    manifest = json.loads((Path(made.stdout.strip()) / "manifest.json").read_text())
    assert manifest["label_guard"] == guard


# --- the helper process ---------------------------------------------------------------------------

HELPED = """
import os, signal, sys, threading, time
from functools import partial
from pathlib import Path
from clipsweep.pipeline.run.outside import helper_process
from clipsweep.pipeline.run.signals import Stopped, raise_on_sigterm
from clipsweep.projection.errors import BadInput

def refuse():
    raise BadInput("x", "is wrong")

def work(mark):
    try:
        mark.touch()
        time.sleep(60)
    finally:
        mark.unlink()

with helper_process(True) as outside, raise_on_sigterm("here"):
    print(outside(os.getpid) != os.getpid())
    try:
        outside(refuse)
    except BadInput as error:
        print(error)
    mark = Path(sys.argv[1])
    def interrupt():
        while not mark.exists():
            time.sleep(0.02)
        os.killpg(0, signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        outside(partial(work, mark))
    except Stopped as stopped:
        print(stopped.number, mark.exists())
    try:
        outside(partial(os._exit, 3))
    except ChildProcessError as error:
        print(error)
"""


def test_a_helper_process_works_fails_and_ends(tmp_path: Path) -> None:
    script = tmp_path / "helped.py"
    script.write_text(HELPED)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "mark"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        timeout=60,
    )
    assert done.stdout.splitlines() == [
        "True",
        "x: is wrong",
        "2 False",
        "a helper process ended with status 3",
    ], done.stderr
    assert not done.stderr

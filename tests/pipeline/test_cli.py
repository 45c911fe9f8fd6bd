"""The command line: messages that cannot steer a terminal, summaries, exit status."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.cli import Made, _left_out, _messages, main
from clipsweep.pipeline.config import Config
from clipsweep.pipeline.terminal import say
from tests.helpers import ROOT, Run, settings

HOSTILE = "a\x1b[2Jb\rc\x07d\x9be\u202ef\nnext"
SHOWN = "a\\x1b[2Jb\\rc\\x07d\\x9be\\u202ef\nnext\n"
"""Only the end of a line stays as it is."""


def test_control_characters_of_messages_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    assert capsys.readouterr().err == SHOWN


def test_control_characters_of_log_messages_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("clipsweep.test")
    with _messages(logging.WARNING):
        log.warning("%s", HOSTILE)
        log.info("below the level")
    log.warning("after it")
    assert capsys.readouterr().err == SHOWN


def test_control_characters_of_skipped_frames_are_escaped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(_: Config) -> Made:
        return Made(Path("made"), [Skip("a\x1bb", "c\rd", "e\x9bf")])

    assert main(None, (), run, None, ()) == 0
    assert capsys.readouterr() == (
        "made\n",
        "left out 1 frame(s), first a\\x1bb of c\\rd: e\\x9bf\n",
    )


FRAME = Skip("f", "scene", "f.bin: is empty")
SWEEP = Skip(None, "", "old.bin: is empty")


@pytest.mark.parametrize(
    ("skipped", "message"),
    [
        ([FRAME, FRAME], "left out 2 frame(s), first f of scene: f.bin: is empty"),
        ([SWEEP, SWEEP], "left out 2 older sweep(s), first: old.bin: is empty"),
        (
            [Skip(None, "scene", "old.bin: is empty")],
            "left out 1 older sweep(s), first of scene: old.bin: is empty",
        ),
        (
            [SWEEP, FRAME],
            "left out 1 frame(s) and 1 older sweep(s), first f of scene: f.bin: is empty",
        ),
    ],
)
def test_what_was_left_out_is_named(skipped: list[Skip], message: str) -> None:
    assert _left_out(skipped) == message


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("label", ["nowhere"], "error: nowhere: is no file and no recipe of the package; see"),
        ("label", ["a" * 5000], "error: aaaa"),
        ("label", ["--fast"], "unknown option --fast"),
        ("bench", ["nothing"], "error: nothing: is no benchmark; choose from "),
        ("bench", [], "error: NAME: is missing: bench.py NAME; choose from "),
        ("submit", ["nothing", "run.address=http://127.0.0.1:1", "store=/a", "data.root=/b"], "er"),
    ],
)
def test_wrong_usage_has_a_status_of_its_own(name: str, arguments: list[str], message: str) -> None:
    command = [sys.executable, f"{ROOT}/tools/{name}.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1


def test_a_name_longer_than_any_file_system_takes_has_a_cure(tool: Run) -> None:
    refused = tool("index", f"data.root=/{'a' * 5000}")
    assert refused.status == 1
    assert refused.err.endswith("give a shorter name\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        [f"{ROOT}/tools/config.py"],
        [f"{ROOT}/tools/config.py", "--table"],
        [f"{ROOT}/tools/label.py", "--help"],
        ["-m", "clipsweep", "--help"],
    ],
)
def test_a_full_disk_behind_stdout_is_one_line(arguments: list[str]) -> None:
    command = [sys.executable, *arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "error: stdout: cannot be written (No space left on device); give it another file\n"
    )


def test_a_closed_stdout_is_one_line() -> None:
    command = f"exec {sys.executable} {ROOT}/tools/config.py seed >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: stdout: is closed; give it a file\n"


@pytest.mark.parametrize("key", ["data.kind", "teacher.kind"])
def test_a_kind_that_is_no_text_is_one_line(key: str, tool: Run) -> None:
    refused = tool("index", f"{key}=${{seed}}")
    assert refused.status == 1
    assert refused.err.startswith(f"error: {key}: is 0")


def test_a_store_among_the_labels_is_one_line(small_world: Path, tmp_path: Path, tool: Run) -> None:
    root = shutil.copytree(small_world, tmp_path / "data")
    refused = tool("label", *settings(root, root / "lidarseg/v1.0-mini/store"))
    assert refused.status == 1
    assert "was open before an annotation-free run began" in refused.err
    assert len(refused.err.splitlines()) == 1

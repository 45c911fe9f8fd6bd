"""What every tool shares: arguments, help, one path on stdout, one line for bad input, the exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipsweep.distill.train import NotFinite
from clipsweep.pipeline.config import Config, describe, load_config
from clipsweep.pipeline.datasets.rows import Skip
from clipsweep.pipeline.ready import check_ready
from clipsweep.pipeline.signals import Stopped, raised
from clipsweep.pipeline.store import Artifact
from clipsweep.pipeline.work import Incomplete
from clipsweep.projection.errors import BadInput


@dataclass(frozen=True, slots=True)
class Made:
    """What a tool made: its path, and the frames that it lacks."""

    path: Path
    skipped: Sequence[Skip] = field(default_factory=tuple)


def say(text: str) -> None:
    """Tells the person at the terminal; stdout is kept for the one path."""
    sys.stderr.write(text + "\n")


def say_bad_steps(student: Artifact) -> None:
    """Tells of steps that a training left out."""
    bad = student.manifest().get("bad_steps", 0)
    if bad:
        say(f"{student.path}: {bad} step(s) were left out because loss or gradient was not finite")


def main(about: str, keys: Sequence[str], run: Callable[[Config], Made], arguments: Sequence[str] | None = None) -> int:
    """Runs a tool; answers its exit status: 0 whole result, 1 bad input, 2 wrong usage, 128 + n signal n.

    Args:
        about: what the tool does and how it is called; the head of --help.
        keys: groups and top-level keys that the tool reads; the body of --help.
        run: the tool.
        arguments: the command line without the program's name.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        sys.stdout.write(_help(about, keys))
        return 0
    show_trace = "--traceback" in given
    unknown = [argument for argument in given if argument.startswith("-") and argument != "--traceback"]
    if unknown:
        say(f"unknown option {unknown[0]}; settings are key=value, see --help")
        return 2
    try:
        with raised("stopped"):
            config = load_config([argument for argument in given if not argument.startswith("-")])
            check_ready(config)
            made = run(config)
    except (BadInput, Incomplete, NotFinite, OSError) as error:
        if show_trace:
            traceback.print_exc()
        say(f"error: {error}")
        return 1
    except Stopped as stopped:
        say(str(stopped))
        return 128 + stopped.number  # as a shell says it
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept, run the same command to go on")
        return 130
    if os.environ.get("RANK", "0") != "0":  # one of several training workers speaks for all
        return 0
    sys.stdout.write(f"{made.path}\n")
    sys.stdout.flush()
    if made.skipped:
        first = made.skipped[0]
        say(f"left out {len(made.skipped)} frame(s), first {first.frame} of {first.scene}: {first.reason}")
    return 0


def _help(about: str, keys: Sequence[str]) -> str:
    rows = [row for row in describe(Config) if {row[0], row[0].split(".")[0]} & set(keys)]
    width = max(len(f"{key}={default}") for key, default, _ in rows)
    lines = [f"  {f'{key}={default}':{width}}  {text}" for key, default, text in rows]
    return "\n".join(
        [about.strip(), "", "YAML files are merged left to right, then key=value. Keys and defaults:", *lines, ""]
    )

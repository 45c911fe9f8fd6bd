"""Command line of the tools: ``key=value`` arguments, help, exit status, error messages.

A tool writes one path to stdout, and one line to stderr for bad input.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from clipsweep.distill.training.loop import NotFinite
from clipsweep.pipeline.artifacts.index import Skip
from clipsweep.pipeline.artifacts.lock import store_in_use
from clipsweep.pipeline.artifacts.store import Artifact
from clipsweep.pipeline.config import Setting, describe, load_arguments, load_config, recipe
from clipsweep.pipeline.run.ready import check_ready
from clipsweep.pipeline.run.scenes import Incomplete
from clipsweep.pipeline.run.signals import Stopped, raise_on_sigterm
from clipsweep.pipeline.stages.guard import LabelLeak
from clipsweep.pipeline.terminal import escaped, printed, say
from clipsweep.projection.errors import BadInput


@dataclass(frozen=True, slots=True)
class Made:
    """Result of a tool: path and frames left out."""

    path: Path
    skipped: Sequence[Skip] = field(default_factory=tuple)


class WrongUsage(BadInput):
    """Error of a command line that no tool takes: exit status 2."""


class _Escaping(logging.Formatter):
    """Log formatter whose messages cannot steer a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record, control characters escaped."""
        return escaped(super().format(record))


def report_bad_steps(student: Artifact) -> None:
    """Reports training steps that were skipped because loss or gradient was not finite."""
    bad = student.manifest().get("bad_steps", 0)
    if bad:
        say(f"{student.path}: {bad} step(s) were left out because loss or gradient was not finite")


@contextmanager
def _messages(level: int) -> Iterator[None]:
    """Log level context: log messages from a level on appear on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Escaping())
    logger = logging.getLogger("clipsweep")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


_OPTIONS = {"--quiet": logging.WARNING, "--verbose": logging.DEBUG, "--traceback": logging.INFO}


def main(
    about: str | None,
    keys: Sequence[str],
    run: Callable[..., Made],
    own: type | None = None,
    arguments: Sequence[str] | None = None,
    *,
    uses_store: bool = True,
) -> int:
    """Runs a tool from the command line, and gives its exit status.

    0 is a whole result, 1 bad input, 2 wrong usage, 128 + n signal n.

    Args:
        about: what the tool does and how it is called; the head of --help.
        keys: groups and top-level keys of the configuration that the tool reads, for --help.
        run: the tool; takes the configuration and, if it has some, its own arguments.
        own: dataclass of the tool's own arguments; None if it has none.
        arguments: the command line without the program's name.
        uses_store: nothing may be deleted from the store while the tool runs.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if {"-h", "--help"} & set(given):
        return printed(_help(about, keys, own))
    unknown = [each for each in given if each.startswith("-") and each not in _OPTIONS]
    if unknown:
        say(f"unknown option {unknown[0]}; settings are key=value, see --help")
        return 2
    try:
        with raise_on_sigterm("stopped"), _messages(_level(given)):
            settings = [argument for argument in given if not argument.startswith("-")]
            _check_recipes(settings)
            names = argument_names(own)
            config = load_config(without(names, settings), names)
            inputs: list[Any] = []
            if own is not None:
                pairs = [argument for argument in settings if _is_one_of(names, argument)]
                inputs.append(load_arguments(own, pairs))
            if "--quiet" in given:
                config = replace(config, run=replace(config.run, progress=False))
            check_ready(config)
            with store_in_use(config.store) if uses_store else nullcontext():
                made = run(config, *inputs)
    except (BadInput, Incomplete, LabelLeak, NotFinite, OSError) as error:
        if "--traceback" in given:
            traceback.print_exc()
        long = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
        say(f"error: {error}" + ("; give a shorter name" if long else ""))
        return 2 if isinstance(error, WrongUsage) else 1
    except Stopped as stopped:
        say(str(stopped))
        return 128 + stopped.number  # the shell's convention
    except KeyboardInterrupt:
        say("interrupted; what was finished is kept, run the same command to go on")
        return 130
    if os.environ.get("RANK", "0") != "0":  # the first training worker reports for all
        return 0
    status = printed(f"{made.path}\n")
    if made.skipped:
        say(_left_out(made.skipped))
    return status


def _left_out(skipped: Sequence[Skip]) -> str:
    """Summary of the frames and older sweeps that were left out, with the first of them."""
    sweeps = sum(skip.frame is None for skip in skipped)
    counted = {"frame(s)": len(skipped) - sweeps, "older sweep(s)": sweeps}
    many = " and ".join(f"{count} {what}" for what, count in counted.items() if count)
    first = min(skipped, key=lambda skip: skip.frame is None)
    name = f" {first.frame}" if first.frame else ""
    scene = f" of {first.scene}" if first.scene else ""
    return f"left out {many}, first{name}{scene}: {first.reason}"


def _check_recipes(settings: Sequence[str]) -> None:
    """Refuses arguments that are neither ``key=value`` nor a file nor a recipe."""
    for argument in settings:
        try:
            if "=" not in argument:
                recipe(argument)
        except BadInput as error:
            raise WrongUsage(error.where, error.problem, error.cure) from None
        except OSError as error:
            cure = "settings are key=value, see --help"
            raise WrongUsage(
                f"{argument[:40]}...", f"is no file ({error.strerror})", cure
            ) from None


def _level(given: Sequence[str]) -> int:
    """Log level that a command line asks for."""
    return next((_OPTIONS[each] for each in given if each in _OPTIONS), logging.INFO)


_OPTIONS_HELP = """Options: --quiet shows warnings and errors alone, --verbose also what is there
already, --traceback where an error comes from."""


def argument_names(own: type | None) -> list[str]:
    """Names of a tool's own arguments."""
    return [] if own is None else [setting.name for setting in describe(own)]


def without(names: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Removes the ``key=value`` of some names from a command line."""
    return [argument for argument in arguments if not _is_one_of(names, argument)]


def _is_one_of(names: Sequence[str], argument: str) -> bool:
    key, equals, _ = argument.partition("=")
    return bool(equals) and key in names


def _help(about: str | None, keys: Sequence[str], own: type | None) -> str:
    lines = [(about or "").strip(), "", _OPTIONS_HELP]
    if own is not None:
        lines += ["", "Arguments and defaults, as key=value:", *_table(list(describe(own)))]
    rows = [row for row in describe() if any(is_below(row.name, key) for key in keys)]
    if rows:
        order = "YAML files are merged left to right, then key=value. Keys and defaults:"
        lines += ["", order]
        for group, keys_of in groupby(rows, key=_group):
            lines += ["", f"{group}:", *_table(list(keys_of))]
    return "\n".join([*lines, ""])


def is_below(name: str, key: str) -> bool:
    """Whether a setting is this key or of this group (``data``, ``objectives.semantic``)."""
    return name == key or name.startswith(f"{key}.")


def _group(setting: Setting) -> str:
    """Heading of a setting in help: its group."""
    group, dot, _ = setting.name.partition(".")
    return f"{group}.*" if dot else "without a group"


def _table(rows: Sequence[Setting]) -> list[str]:
    """Help table: one line a key, with default, meaning and allowed values."""
    width = max(len(f"{row.name}={row.default}") for row in rows)
    lines: list[str] = []
    for row in rows:
        values = f" ({row.allowed})" if row.allowed else ""
        lines.append(f"  {f'{row.name}={row.default}':{width}}  {row.text}{values}")
    return lines

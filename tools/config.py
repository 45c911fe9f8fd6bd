"""Explains configuration keys and tool arguments: default, allowed values, meaning.

usage: python tools/config.py [KEY ...]
       python tools/config.py --table

A KEY may be whole (fusion.limits, student), a group (fusion) or a part of one; without any, all
keys are listed. --table writes the keys as the Markdown tables of configs/README.md.
"""

import sys
from collections.abc import Iterator, Sequence

from clipsweep.pipeline.config import Setting, describe, did_you_mean
from clipsweep.pipeline.terminal import printed, say
from clipsweep.tools import arguments_of, tool_names


def run(wanted: Sequence[str]) -> int:
    """Prints the configuration keys that match; 1 where one of those wanted matches none."""
    entries = list(_entries())
    lines: list[str] = []
    status = 0
    for part in wanted or ("",):
        found = [entry for entry in entries if entry[0].name == part]
        found = found or [entry for entry in entries if part in entry[0].name]
        lines += [_text(setting, tool) for setting, tool in found]
        if not found:
            known = [setting.name for setting, tool in entries if tool]
            say(f"error: no key {part!r}; {did_you_mean(part, known)}")
            status = 1
    return printed("".join(lines)) or status


def _entries() -> Iterator[tuple[Setting, str]]:
    """Lists every configuration key, and every argument with its tool."""
    for setting in describe():
        yield setting, ""
    for tool in tool_names():
        own = arguments_of(tool)
        for setting in describe(own) if own else ():
            yield setting, tool


def _text(setting: Setting, tool: str) -> str:
    lines = [f"{setting.name}={setting.default}", f"    {setting.text}"]
    if setting.allowed:
        lines.append(f"    {setting.allowed}")
    if tool:
        lines.append(f"    argument of {tool}")
    return "\n".join([*lines, ""])


ESCAPED = "\\|"


def tables() -> str:
    """Markdown tables of all configuration keys, one for each group."""
    lines: list[str] = []
    group = None
    for setting in describe():
        first = setting.name.partition(".")[0] if "." in setting.name else ""
        if first != group:
            group = first
            lines += ["", f"### {f'`{group}.*`' if group else 'Without a group'}", ""]
            lines += ["| key | default | allowed | meaning |", "|---|---|---|---|"]
        key = setting.name.removeprefix(f"{group}.")
        default = f"`{setting.default}`" if setting.default else ""
        cells = [f"`{key}`", default, setting.allowed, setting.text]
        lines.append(f"| {' | '.join(cell.replace('|', ESCAPED) for cell in cells)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(printed(__doc__ or ""))
    if sys.argv[1:] == ["--table"]:
        sys.exit(printed(tables()))
    sys.exit(run(sys.argv[1:]))

"""Command line entry point: runs a tool by its name, or lists the tools.

``clipsweep TOOL ...`` runs a tool, as ``python tools/TOOL.py ...`` does in a checkout.
"""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

from clipsweep.pipeline.terminal import printed

TOOLS = {
    "Data": ("demo", "index", "doctor", "import_bag"),
    "Pseudo-labels": ("label", "export_labels"),
    "Training": ("pretrain", "finetune"),
    "Results": ("evaluate", "report", "view"),
    "Store, clusters, measurements, settings": ("status", "submit", "bench", "config"),
}
_FOLDER = Path(__file__).parent / "tools"


def main() -> None:
    """Runs the tool that the first argument names, with the other arguments."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    known = [tool for tools in TOOLS.values() for tool in tools]
    if name in ("-h", "--help"):
        if status := printed(_help()):
            sys.exit(status)
        return
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        cure = f"did you mean {close[0]}?" if close else f"tools: {', '.join(known)}"
        sys.stderr.write(f"error: {name!r} is no tool; {cure}\n")
        sys.exit(2)
    sys.argv = [str(_FOLDER / f"{name}.py"), *arguments]
    runpy.run_module(f"clipsweep.tools.{name}", run_name="__main__")


def _help() -> str:
    lines = [
        "usage: clipsweep TOOL RECIPE ... [key=value ...]; clipsweep TOOL --help",
        "",
        "A recipe is a YAML file, or the name of one that comes with the package: demo,",
        "data/nuscenes, pretrain/quick, ... Recipes are merged left to right, then key=value.",
    ]
    for group, tools in TOOLS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {tool:14} {_purpose(tool)}" for tool in tools]
    return "\n".join([*lines, ""])


def _purpose(tool: str) -> str:
    """First line of a tool's docstring, read without importing it."""
    tree = ast.parse((_FOLDER / f"{tool}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n")[0]


if __name__ == "__main__":
    main()

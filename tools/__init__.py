"""Command line tools, one file each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path


def tool_names() -> list[str]:
    """Names of the command line tools."""
    return sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def arguments_of(tool: str) -> type | None:
    """Dataclass of a tool's own arguments; None if it has none."""
    own: type | None = getattr(import_module(f"{__name__}.{tool}"), "Arguments", None)
    return own

"""How the code is written, as far as ruff does not check it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

_COLUMNS = 100
ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("projection", "distill", "pipeline", "tools", "tests", ".src")


def _roots(target: ast.expr) -> set[str]:
    """Names that an assignment to a target changes: ``a`` of ``a``, ``a.b`` and ``a[i]``."""
    if isinstance(target, ast.Tuple | ast.List):
        return {name for element in target.elts for name in _roots(element)}
    while isinstance(target, ast.Attribute | ast.Subscript):
        target = target.value
    return {target.id} if isinstance(target, ast.Name) else set()


def packed(tree: ast.AST) -> list[int]:
    """Lines of assignments ``a, b = x, y``; swaps, whose targets occur on the right, are exempt."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            continue
        target = node.targets[0]
        value = node.value
        if not isinstance(target, ast.Tuple | ast.List) or not isinstance(
            value, ast.Tuple | ast.List
        ):
            continue
        if len(target.elts) != len(value.elts) or any(
            isinstance(element, ast.Starred) for element in [*target.elts, *value.elts]
        ):
            continue
        read = {each.id for each in ast.walk(value) if isinstance(each, ast.Name)}
        if not _roots(target) & read:
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("a, b = 1, 2", True),
        ("a.x, b = 1, 2", True),
        ("(a, b), c = (1, 2), 3", True),
        ("a, b = b, a", False),
        ("a[0], a[1] = a[1], a[0]", False),
        ("a, b = f()", False),
        ("a, *b = 1, 2", False),
        ("a = b = 1", False),
    ],
)
def test_the_check_finds_packed_assignments(code: str, found: bool) -> None:
    assert bool(packed(ast.parse(code))) is found


@pytest.mark.parametrize("folder", FOLDERS)
def test_unrelated_values_are_assigned_one_a_line(folder: str) -> None:
    files = [path for path in sorted((ROOT / folder).rglob("*.py")) if not path.is_symlink()]
    found = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := packed(ast.parse(path.read_text(encoding="utf-8"))))
    }
    assert not found


def test_no_line_is_longer_than_a_hundred_columns() -> None:
    patterns = ("*.py", "*.yaml", "*.toml", "*.cfg", "*.sh")
    folders = [ROOT / name for name in (*FOLDERS, "configs", "docker")]
    files = [path for pattern in patterns for folder in folders for path in folder.rglob(pattern)]
    files += [path for pattern in patterns for path in ROOT.glob(pattern)]
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(files)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > _COLUMNS
    ]
    assert not found


_PRIVATE = re.compile(r"\b(said|heard|hears|opinions?|word of|says of)\b", re.IGNORECASE)


def test_private_vocabulary_is_gone() -> None:
    """The field has words for these: labels, predictions, messages, signals, no label."""
    folders = [ROOT / name for name in (*FOLDERS, "configs", "docker")]
    patterns = ("*.py", "*.yaml", "*.md")
    files = [path for pattern in patterns for folder in folders for path in folder.rglob(pattern)]
    files += list(ROOT.glob("*.md"))
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted(set(files) - {Path(__file__)})
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if _PRIVATE.search(line)
    ]
    assert not found

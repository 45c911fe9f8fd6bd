"""How the code is written, as far as ruff does not check it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

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
        target, value = node.targets[0], node.value
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

"""Size limits of files, functions and classes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("rcm_core", "infra", "flows", "experiments", "scripts", "kernels", "tests")
FILE, FUNCTION, CLASS, ARGUMENTS = 300, 60, 120, 7
"""Maximum lines of a file, of a function without its docstring, and of a class; maximum arguments of a function."""
MEDIAN = 7
"""Maximum lines of the median function, including docstrings."""
ALLOWED: dict[str, str] = {"infra/cli.py::sample": "every option of a command is an argument"}
"""``path`` or ``path::name`` -> the reason why it may be larger."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef


def files() -> list[Path]:
    return sorted(p for place in PLACES for p in (ROOT / place).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def lines_of(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


def body_lines(node: Definition) -> int:
    """Return the number of lines without the docstring."""
    text = ast.get_docstring(node, clean=False)
    return lines_of(node) - (lines_of(node.body[0]) if text is not None else 0)


def arguments(node: Definition) -> list[ast.arg]:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [a for a in every if a.arg not in ("self", "cls")]


def excesses(path: Path) -> Iterator[str]:
    """Yield everything in ``path`` that exceeds its limit."""
    text, name = path.read_text(), name_of(path)
    free = name.startswith(
        ("kernels/", "tests/")
    )  # arguments of kernels are matrices, those of tests fixtures
    lines = len(text.splitlines())
    if lines > FILE:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, Definition):
            if body_lines(node) > FUNCTION:
                yield f"{name}::{node.name}: {body_lines(node)} lines"
            if not free and len(arguments(node)) > ARGUMENTS:
                yield f"{name}::{node.name}: {len(arguments(node))} arguments"
        elif isinstance(node, ast.ClassDef) and lines_of(node) > CLASS:
            yield f"{name}::{node.name}: {lines_of(node)} lines"


@pytest.mark.parametrize("tests", [False, True])
def test_the_median_function_is_short(tests: bool) -> None:
    trees = [ast.parse(path.read_text()) for path in files() if name_of(path).startswith("tests/") is tests]
    lengths = [lines_of(n) for tree in trees for n in ast.walk(tree) if isinstance(n, Definition)]
    assert median(lengths) <= MEDIAN


def test_there_is_something_to_measure() -> None:
    assert len(files()) > 80


def test_every_file_keeps_its_budget() -> None:
    found = [excess for path in files() for excess in excesses(path)]
    assert [e for e in found if e.split(": ")[0] not in ALLOWED] == []


def test_the_allow_list_is_needed() -> None:
    found = {e.split(": ")[0] for path in files() for e in excesses(path)}
    assert set(ALLOWED) <= found
    assert all(reason.strip() for reason in ALLOWED.values())


def test_no_package_is_a_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc", "manager"}
    assert [name_of(p) for p in files() if p.stem in drawers or p.parent.name in drawers] == []
    assert not (ROOT / "kernels/__init__.py").exists()  # it would shadow the package `kernels` on PyPI

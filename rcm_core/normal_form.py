"""Normal form of a Python file: the code that Python runs, without the text that only people read.

It has no comments, docstrings, ``pass`` or layout. It has no path of a project module: uses of an imported name are
numbered, and ``targets`` lists the module and name of each number. Neither the order of imports counts nor whether they
stand at the head of the file or in a function (ruff sorts them in any case). Strings are unchanged. Python 3.11, 3.12
and 3.13 give the same form.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ROOTS = ("rcm_core", "rcm_kernels")
IGNORED = frozenset({"ctx", "kind", "type_comment", "type_ignores"})
"""Fields of syntax trees that carry no information beyond the position in the tree."""
SILENT = (ast.expr_context, ast.operator, ast.Constant, ast.Attribute, ast.keyword)
"""Node types that neither bind a name nor import or look up anything."""

Target = tuple[str, str]
"""A project module and the name that is imported from it ("" for the module itself)."""


@dataclass(frozen=True)
class Source:
    """One file in normal form."""

    body: str
    """Digest of its statements and of its imports from outside the project."""
    targets: tuple[Target, ...]
    """Imports from the project, each name once: the used ones in order of use, then the others, sorted."""
    used: int
    """Number of ``targets`` that ``body`` refers to by position."""
    modules: frozenset[str]
    """Names that the file may import as modules."""
    kinds: frozenset[str]
    """Registry folders that the file looks up: ``find("methods", ...)``, ``find_family(...)``, or a whole folder,
    ``every("evaluation.metrics")``.
    """


def normal_form(text: str) -> Source:
    """Return the normal form of a Python file; SyntaxError if ``text`` is not Python."""
    tree = ast.parse(text)
    nodes = [node for node in ast.walk(tree) if not isinstance(node, SILENT)]
    imports = [name for node in nodes for name in _imports(node)]
    writer = _Writer(_movable(nodes, imports))
    writer.statements(tree.body)
    outside = sorted(
        {f"{i.module} {i.name} {i.bound}" for i in imports if i.bound in writer.movable and not i.ours}
    )
    used = list(writer.positions)
    rest = sorted({i.target for i in imports if i.ours and i.bound in writer.movable} - set(used))
    return Source(
        body=digest("".join(writer.parts), *outside),
        targets=(*used, *rest),
        used=len(used),
        modules=frozenset(m for i in imports for m in (i.module, f"{i.module}.{i.name}")),
        kinds=frozenset(kind for node in nodes for kind in _kind(node)),
    )


@dataclass(frozen=True, order=True)
class _Import:
    """One name of an import statement; ``name`` is "" if ``module`` itself is imported."""

    bound: str
    module: str
    name: str

    @property
    def ours(self) -> bool:
        return self.module.startswith(".") or self.module.split(".")[0] in ROOTS

    @property
    def target(self) -> Target:
        return (self.module, self.name)


def _imports(node: ast.AST) -> Iterator[_Import]:
    match node:
        case ast.Import():
            for alias in node.names:
                yield _Import(alias.asname or alias.name.split(".")[0], alias.name, "")
        case ast.ImportFrom():
            for alias in node.names:
                module = "." * node.level + (node.module or "")
                yield _Import(alias.asname or alias.name, module, alias.name)


def _kind(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Call(func=ast.Name(id="find" | "every"), args=[ast.Constant(value=str(kind)), *_]):
            yield kind
        case ast.Call(func=ast.Name(id="find_family")):
            yield "models"
        case ast.Call(func=ast.Name(id="find_benchmark")):
            yield "benchmarks"


def _movable(nodes: list[ast.AST], imports: list[_Import]) -> Mapping[str, _Import]:
    """Return the imports whose position in the file does not matter: nothing else in the file binds their name.

    ``import rcm_core.x`` is not among them: its uses spell the path out.
    """
    meanings: dict[str, set[Target]] = {}
    for i in imports:
        plain = i.name == "" and i.bound != i.module and i.module.startswith(f"{i.bound}.")
        meanings.setdefault(i.bound, set()).add((i.bound, "") if plain else i.target)
    others = {"*", *ROOTS, *(name for node in nodes for name in _bindings(node))}
    single = {name for name, targets in meanings.items() if len(targets) == 1} - others
    return {i.bound: i for i in imports if i.bound in single}


def _bindings(node: ast.AST) -> Iterator[str]:
    """Yield the names that ``node`` binds other than by an import."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
        case ast.Global(names=names) | ast.Nonlocal(names=names):
            yield from names


class _Writer:
    """Writes a syntax tree as text without absent and empty fields, so that every version of Python gives the same."""

    def __init__(self, movable: Mapping[str, _Import]) -> None:
        self.movable = movable
        self.parts: list[str] = []
        self.positions: dict[Target, int] = {}

    def write(self, value: Any) -> None:
        match value:
            case ast.Name(id=name) if name in self.movable and self.movable[name].ours:
                self._position(self.movable[name].target)
            case ast.Constant(value=constant):
                self.parts.append(f"<{type(constant).__name__} {constant!a}>")
            case ast.AST():
                self._node(value)
            case [ast.stmt(), *_]:
                self.statements(value)
            case list():
                self.parts.append("[")
                for item in value:
                    self.write(item)
                self.parts.append("]")
            case _:
                self.parts.append(f"<{value!a}>")

    def _node(self, node: ast.AST) -> None:
        self.parts.append(f"({type(node).__name__}")
        for field, value in ast.iter_fields(node):
            if field not in IGNORED and value is not None and value != []:
                self.parts.append(f" {field}=")
                self.write(value)
        self.parts.append(")")

    def statements(self, nodes: list[ast.stmt]) -> None:
        self.parts.append("[")
        fixed = {i for node in nodes for i in _imports(node) if i.bound not in self.movable}
        for i in sorted(fixed):
            self.parts.append(f"(import {i.bound} ")
            if i.ours and i.bound not in ROOTS:
                self._position(i.target)
            else:
                self.parts.append(f"{i.module} {i.name}")
            self.parts.append(")")
        for node in nodes:
            if not _is_idle(node):
                self.write(node)
        self.parts.append("]")

    def _position(self, target: Target) -> None:
        self.parts.append(f"<import {self.positions.setdefault(target, len(self.positions))}>")


def _is_idle(node: ast.stmt) -> bool:
    """Return whether ``node`` does nothing in its place: docstrings, ``...``, ``pass``, imports (written apart)."""
    match node:
        case ast.Pass() | ast.Import() | ast.ImportFrom() | ast.Expr(value=ast.Constant()):
            return True
    return False


def digest(*parts: str) -> str:
    """Return the SHA-256 of ``parts``, one per line, as hex."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


EMPTY = normal_form("").body
"""``Source.body`` of a file without statements."""

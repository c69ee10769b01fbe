"""Which source files a module's behaviour depends on: its static import closure inside the project."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ROOTS = ("rcm_core", "rcm_kernels")


@cache
def source_of(module: str) -> Path | None:
    """The file of ``module``, or None if there is no such module; nothing of it is imported."""
    root, *names = module.split(".")
    spec = find_spec(root)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*names)
    files = [place / "__init__.py", *([place.with_name(f"{names[-1]}.py")] if names else [])]
    return next((file for file in files if file.is_file()), None)


@cache
def tree_of(module: str) -> ast.Module | None:
    """The parsed file of ``module``."""
    path = source_of(module)
    return ast.parse(path.read_text()) if path else None


def imports_of(module: str, choices: Mapping[str, str]) -> set[str]:
    """Project modules that ``module`` imports anywhere in its file, with their packages, and what it finds.

    ``find("methods", ...)`` (rcm_core/registry.py) counts as an import of ``choices["methods"]``.
    """
    tree = tree_of(module)
    names: set[str] = set()
    for node in ast.walk(tree) if tree else ():
        match node:
            case ast.Import():
                names.update(alias.name for alias in node.names)
            case ast.ImportFrom(module=str(package), level=0):
                names.update([package, *(f"{package}.{alias.name}" for alias in node.names)])
            case ast.Call(func=ast.Name(id="find"), args=[ast.Constant(value=str(kind)), *_]):
                names.add(f"rcm_core.{kind}.{choices[kind]}")
    ours = {name for name in names if name.split(".")[0] in ROOTS}
    return {whole for name in ours for whole in with_packages(name) if source_of(whole) is not None}


def with_packages(module: str) -> list[str]:
    """``module`` and the packages above it, which are imported with it."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def closure(module: str, choices: Mapping[str, str]) -> dict[str, Path]:
    """``module`` and all project modules it can reach, with their files, when ``choices`` are made."""
    reached: dict[str, Path] = {}
    queue = with_packages(module) if source_of(module) else []
    while queue:
        name = queue.pop()
        path = source_of(name)
        if name not in reached and path is not None:
            reached[name] = path
            queue.extend(imports_of(name, choices))
    return reached


def code_hash(module: str, choices: Mapping[str, str]) -> str:
    """Hex digest of all files in the closure of ``module``."""
    digest = hashlib.sha256()
    for name, path in sorted(closure(module, choices).items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()

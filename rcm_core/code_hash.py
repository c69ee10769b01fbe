"""Hash of the code that a module's behaviour depends on: everything it imports inside the project, in normal form.

The hash contains no path of a project module: an import counts by the content of the imported module and the imported
name. A moved module, or an import under another local name, does not change the hash; an import of the same name from
another module does. Module paths inside strings ("rcm_core.pixels" in a pipeline's model_index.json) are data and
count. Merging two modules, or splitting one, changes the hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec, resolve_name
from pathlib import Path

from rcm_core.normal_form import EMPTY, ROOTS, Source, Target, digest, normal_form

DATA = ".json"
"""Suffix of the data files that lie beside a package's modules and count like code."""


@cache
def source_of(module: str) -> Path | None:
    """Return the file of ``module``, or None if there is no such module; imports only the root package."""
    root, *names = module.split(".")
    spec = find_spec(root)
    if spec is None or spec.origin is None:
        return None
    place = Path(spec.origin).parent.joinpath(*names)
    files = [place / "__init__.py", *([place.with_name(f"{names[-1]}.py")] if names else [])]
    return next((file for file in files if file.is_file()), None)


@cache
def form_of(module: str) -> Source | None:
    """Return the normal form of ``module``'s file, or None if there is no such module."""
    path = source_of(module)
    return normal_form(path.read_text(encoding="utf-8")) if path else None


def imports_of(module: str, choices: Mapping[str, str]) -> set[str]:
    """Return the project modules that ``module`` imports anywhere in its file or looks up, with their packages.

    ``find("methods", ...)`` counts as an import of ``choices["methods"]``. A folder without a choice counts
    whole.
    """
    form = form_of(module)
    if form is None:
        return set()
    names = {resolve_name(name, _package(module)) for name in form.modules}
    names |= {f"rcm_core.{kind}.{name}" for kind in form.kinds for name in _names_in(kind, choices)}
    ours = {name for name in names if name.split(".")[0] in ROOTS}
    return {whole for name in ours for whole in with_packages(name) if source_of(whole) is not None}


def _names_in(kind: str, choices: Mapping[str, str]) -> list[str]:
    """Return the names of the modules in the registry folder ``kind`` that count."""
    if kind in choices:
        return [choices[kind]]
    package = source_of(f"rcm_core.{kind}")
    files = package.parent.glob("*.py") if package else ()
    return sorted(path.stem for path in files if path.stem != "__init__")


def with_packages(module: str) -> list[str]:
    """Return ``module`` and the packages above it, which are imported with it."""
    parts = module.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def closure(module: str, choices: Mapping[str, str]) -> dict[str, Path]:
    """Return ``module`` and all project modules it can reach under ``choices``, with their files."""
    reached: dict[str, Path] = {}
    queue = with_packages(module) if source_of(module) else []
    while queue:
        name = queue.pop()
        path = source_of(name)
        if name not in reached and path is not None:
            reached[name] = path
            queue.extend(imports_of(name, choices))
    return reached


def code_hashes(module: str, choices: Mapping[str, str]) -> dict[str, str]:
    """Return the content hash of each module in the closure of ``module``, and of its packages' data files.

    A key is a module's name or, for a data file, its package's and the file's name. Modules without a statement, such
    as a package's empty ``__init__``, are left out.
    """
    hashes = {}
    for name, path in closure(module, choices).items():
        form = form_of(name)
        if form and (form.targets or form.body != EMPTY):
            hashes[name] = content_of(name, form)
        if path.name == "__init__.py":
            for file in path.parent.glob(f"*{DATA}"):
                hashes[f"{name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return dict(sorted(hashes.items()))


def code_hash(module: str, choices: Mapping[str, str]) -> str:
    """Return the hex digest of the contents in the closure of ``module``, independent of their paths."""
    return digest(*sorted(code_hashes(module, choices).values()))


@cache
def content_of(module: str, form: Source) -> str:
    """Return the hash of ``module``, whose normal form is ``form``, and of its exact imports from the project."""
    targets = [_identity(module, target) for target in form.targets]
    return digest(form.body, *targets[: form.used], "", *sorted(targets[form.used :]))


def _identity(module: str, target: Target) -> str:
    """Return the path-free digest of an import: the owner's content, and the owner's own imports by name alone."""
    owner, name = _resolve(module, target)
    form = form_of(owner)
    if form is None:
        return digest(owner, name)
    return digest(form.body, *sorted(_resolve(owner, t)[1] for t in form.targets), "", name)


def _resolve(module: str, target: Target) -> Target:
    """Return ``target`` with an absolute path; a name that is itself a module becomes that module."""
    place, name = resolve_name(target[0], _package(module)), target[1]
    return (f"{place}.{name}", "") if name and source_of(f"{place}.{name}") else (place, name)


def _package(module: str) -> str:
    """Return the package that relative imports in ``module`` start from."""
    path = source_of(module)
    return module if path and path.name == "__init__.py" else module.rpartition(".")[0]

"""The layout: few modules at the root of the core, folders named for their content, layers, no import cycle."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("experiments", "flows", "infra", "rcm_core", "scripts")
MOST_AT_ROOT = 12
FILES = {
    p.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): p
    for place in PLACES
    for p in (ROOT / place).rglob("*.py")
}


def imports(path: Path) -> Iterator[str]:
    """Yield project modules that ``path`` imports, also inside functions, and the packages it imports names from."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name in FILES)
            case ast.ImportFrom(module=str(place), names=names):
                whole = [f"{place}.{name.name}" for name in names]
                yield from (name if name in FILES else place for name in whole if place in FILES)


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return one cycle of ``graph``; empty if it has none."""
    path: list[str] = []
    done: set[str] = set()

    def visit(node: str) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        path.append(node)
        found = next((c for c in map(visit, sorted(graph.get(node, set()))) if c), [])
        path.pop()
        done.add(node)
        return found

    return next((c for c in map(visit, sorted(graph)) if c), [])


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_module_imports_itself_through_others() -> None:
    assert circle({module: set(imports(path)) - {module} for module, path in FILES.items()}) == []


@pytest.mark.parametrize("place", PLACES)
def test_no_folder_imports_itself_through_others(place: str) -> None:
    """Imports are grouped by the first folder below ``place``; modules beside the folders count as themselves."""

    def owner(module: str) -> str:
        return ".".join(module.split(".")[:2])

    graph: dict[str, set[str]] = {}
    for module, path in FILES.items():
        if module.startswith(f"{place}."):
            inside = {owner(m) for m in imports(path) if m.startswith(f"{place}.")}
            graph.setdefault(owner(module), set()).update(inside - {owner(module)})
    assert circle(graph) == []


def test_the_root_of_the_core_is_short() -> None:
    modules = [p.stem for p in (ROOT / "rcm_core").glob("*.py") if p.stem != "__init__"]
    assert len(modules) <= MOST_AT_ROOT


def test_every_folder_says_what_it_holds() -> None:
    folders = {p.parent for p in FILES.values()}
    for folder in folders:
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        lines = [line for line in text.splitlines() if line]
        assert 1 <= len(lines) <= 3, folder


def test_layers_are_folders() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [c for c in contracts if c["type"] == "layers"]
    assert layers
    for contract in layers:
        for container in contract.get("containers", [""]):
            names = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
            above = ROOT / container.replace(".", "/")
            assert {n for n in names if not (above / n).is_dir() and n != "rcm_kernels"} == set()


def test_paths_that_published_pipelines_name_stay() -> None:
    from rcm_core.pixels import PixelSpace
    from rcm_core.samplers.scheduler import FewStepScheduler

    assert (PixelSpace.__module__, FewStepScheduler.__module__) == (
        "rcm_core.pixels",
        "rcm_core.samplers.scheduler",
    )

"""The image's definition: its stages resolve, its copied files are in the build context, it has no secrets."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker.utils.build import exclude_paths
from dockerfile_parse import DockerfileParser
from manifests import ROOT

PLACE = ROOT / "infra/images/Dockerfile"
TEXT = PLACE.read_text()
KNOWN = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "ENTRYPOINT", "CMD", "COMMENT"}
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")


@pytest.fixture(scope="module")
def context() -> set[str]:
    """Return the files that ``docker build .`` would send."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line]
    return exclude_paths(str(ROOT), ignored, dockerfile=str(PLACE.relative_to(ROOT)))


def problems(text: str, folder: Path, context: set[str]) -> Iterator[str]:
    """Yield the errors that would stop the build before it runs a command."""
    parser = DockerfileParser(path=str(folder / "Dockerfile"), cache_content=True)
    parser.content = text
    arguments: dict[str, str] = {}
    stages: list[str] = []
    for step in parser.structure:
        kind, value = step["instruction"], step["value"]
        if kind not in KNOWN:
            yield f"unknown instruction {kind}"
        elif kind == "ARG" and not stages:
            name, _, default = value.partition("=")
            arguments[name] = default
        elif kind == "FROM":
            base, _, stage = value.partition(" AS ")
            named = re.fullmatch(r"\$\{(\w+)\}", base)
            if not (arguments.get(named[1]) if named else base in stages):
                yield f"no stage or argument {base}"
            stages.append(stage)
        elif kind == "COPY":
            yield from _copied(value, stages, context)


def _copied(value: str, stages: list[str], context: set[str]) -> Iterator[str]:
    words = value.split()
    options = [w for w in words if w.startswith("--")]
    sources = [w for w in words if not w.startswith("--")][:-1]
    if origin := [o.removeprefix("--from=") for o in options if o.startswith("--from=")]:
        if origin[0] not in stages:
            yield f"no stage {origin[0]} to copy from"
    else:
        yield from (f"{s} is not in the context" for s in sources if s != "." and s not in context)


def test_the_definition_resolves(context: set[str], tmp_path: Path) -> None:
    assert list(problems(TEXT, tmp_path, context)) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("COPY flows ", "COPY flow ", "flow is not in the context"),
        ("COPY constraints.txt", "COPY .git/config", ".git/config is not in the context"),
        ("--from=build", "--from=builds", "no stage builds to copy from"),
        ("FROM system AS runtime", "FROM systems AS runtime", "no stage or argument systems"),
        ("${CUDA_IMAGE}", "${CUDA}", "no stage or argument ${CUDA}"),
        ("WORKDIR", "WORKDIRS", "unknown instruction WORKDIRS"),
    ],
)
def test_a_definition_that_would_not_build_is_seen(
    context: set[str], tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in TEXT
    assert said in list(problems(TEXT.replace(old, new, 1), tmp_path, context))


def test_the_context_has_the_packages_and_nothing_of_this_machine(context: set[str]) -> None:
    hatch = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]
    for package in hatch["build"]["targets"]["wheel"]["packages"]:
        assert f"{package}/__init__.py" in context
    assert {
        "dvc.yaml",
        "params.yaml",
        "conf/config.yaml",
        ".dvc/config",
    } <= context  # files that `rcm doctor` reads
    assert [p for p in context if re.match(r"\.(git|venv|rcm|env)(/|$)|runs|.*__pycache__", p)] == []


def test_it_runs_as_nobody_special_by_the_project_s_constraints(tmp_path: Path) -> None:
    parser = DockerfileParser(path=str(tmp_path / "Dockerfile"), cache_content=True)
    parser.content = TEXT
    steps: list[dict[str, Any]] = parser.structure
    values = {kind: [s["value"] for s in steps if s["instruction"] == kind] for kind in KNOWN}
    assert [int(user) for user in values["USER"]] == [10001]
    assert any(
        "pip install" in run and "--constraint /source/constraints.txt" in run for run in values["RUN"]
    )
    assert any(run.endswith("rcm doctor") for run in values["RUN"])
    assert json.loads(values["CMD"][0])[0] == "rcm"
    given = [word.split("=")[0] for value in [*values["ENV"], *values["ARG"]] for word in value.split()]
    assert [name for name in given if SECRET.search(name)] == []

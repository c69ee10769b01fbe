"""dvc.yaml's code dependencies follow the imports: ``python scripts/dvc_deps.py`` rewrites them, ``--check`` compares.

A stage depends on the files in its static import closure (rcm_core/closure.py); a folder of which every file is in it
is named as a folder. The chosen method, family and benchmark are named through params.yaml; what any of them imports
besides (rcm_core/terms, rcm_core/scenes) is named for all.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from rcm_core.closure import closure
from rcm_core.registry import available

ROOT = Path(__file__).parent.parent
SETTINGS = {"methods": "method.name", "models": "teacher.family", "data": "teacher.data"}
DEFAULT = {"methods": "rcm", "models": "wan", "data": "digits"}
TEMPLATES = {
    f"rcm_core/{kind}/{name}.py": f"rcm_core/{kind}/${{{setting}}}.py"
    for kind, setting in SETTINGS.items()
    for name in available(kind)
}
WHOLE = (
    "rcm_core/jvp",
    "rcm_core/losses",
    "rcm_core/evaluation/metrics",
    "rcm_core/evaluation/report",
    "rcm_core/scenes",
    "kernels/rcm_kernels",
)


@cache
def code_of_choices(kind: str) -> frozenset[Path]:
    """Files that any implementation of ``kind`` reaches."""
    found = (closure(f"rcm_core.{kind}.{name}", DEFAULT) for name in available(kind))
    return frozenset(path for reached in found for path in reached.values())


def code_of(stage: str) -> list[str]:
    """Code dependencies of ``stage``, sorted, folders collapsed."""
    reached = closure(f"rcm_core.stages.{stage}", DEFAULT)
    chosen = [kind for kind, name in DEFAULT.items() if f"rcm_core.{kind}.{name}" in reached]
    paths = set(reached.values()).union(*map(code_of_choices, chosen))
    files = {path.relative_to(ROOT).as_posix() for path in paths}
    deps = set()
    for name in files:
        whole = next((w for w in WHOLE if name.startswith(f"{w}/")), None)
        empty = name.endswith("__init__.py") and not whole
        if not empty:
            deps.add(whole or TEMPLATES.get(name, name))
    return sorted(deps)


def is_code(dep: str) -> bool:
    """Whether a dependency of dvc.yaml is code."""
    return dep.startswith(("rcm_core/", "kernels/"))


def main() -> int:
    """0 if dvc.yaml is (now) right, 1 if ``--check`` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if dvc.yaml differs")
    check = parser.parse_args().check
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = ROOT / "dvc.yaml"
    pipeline = yaml.load(path)
    wrong = []
    for name, stage in pipeline["stages"].items():
        data = [dep for dep in stage["deps"] if not is_code(dep)]
        if [*data, *code_of(name)] != list(stage["deps"]):
            wrong.append(name)
            stage["deps"] = [*data, *code_of(name)]
    if wrong and check:
        print(
            f"dvc.yaml: code dependencies of {', '.join(wrong)} differ from the imports; run python scripts/dvc_deps.py"
        )
        return 1
    if wrong:
        yaml.dump(pipeline, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

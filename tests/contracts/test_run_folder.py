"""``RunFolder`` owns the layout of runs/: no other module contains such a path, and its paths are DVC's outputs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import yaml

from rcm_core.storage.run_folder import RELATIVE, Place, RunPlaces

ROOT = Path(__file__).parents[2]
PLACES = ("rcm_core", "infra", "flows", "experiments", "scripts")
OWNER = ROOT / "rcm_core/storage/run_folder.py"


def texts(path: Path) -> Iterator[str]:
    """Yield the strings in the code of ``path``, including those in f-strings, without docstrings."""
    tree = ast.parse(path.read_text())
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.value


def test_no_other_module_has_a_path_of_runs() -> None:
    files = [path for place in PLACES for path in (ROOT / place).rglob("*.py") if path != OWNER]
    assert len(files) > 200
    found = {
        str(path.relative_to(ROOT)): [text for text in texts(path) if text.startswith("runs/")]
        for path in files
    }
    assert {name: spelt for name, spelt in found.items() if spelt} == {}


def test_every_place_is_an_output_of_dvc_or_inside_one() -> None:
    """Exceptions are the result of `rcm tune-times`, which is no stage, and the names of hashed modules."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    outs = {
        Path(*out) if isinstance(out, dict) else Path(out)
        for stage in stages.values()
        for kind in ("outs", "metrics", "plots")
        for out in stage.get(kind, [])
    }
    names = [name for name, value in vars(RunPlaces).items() if isinstance(value, Place)]
    assert len(names) > 15
    for name in set(names) - {"tuned_times", "code_modules"}:
        place = getattr(RELATIVE, name)
        inside = {place, *place.parents} & outs
        assert inside or any(place in out.parents for out in outs), place

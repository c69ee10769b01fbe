"""Code dependencies of each stage: ``python -m infra.code_hashes`` (the stage ``code`` of dvc.yaml).

Writes ``runs/code/<stage>.json``: the hashes of all modules that the stage imports with the method, family and
benchmark in params.yaml. The file has no module names, so moving a module reruns nothing. ``runs/code/modules.json``,
on which nothing depends, maps modules to hashes. Imports neither the stages nor PyTorch, because it runs at the start
of every ``dvc repro``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rcm_core.code_hash import code_hashes
from rcm_core.errors import InputError, exit_for_bad_input
from rcm_core.registry import available
from rcm_core.storage.files import json_text, write_json
from rcm_core.storage.formats import read_yaml
from rcm_core.storage.run_folder import RunFolder

CHOICES = {"methods": "method.name", "models": "teacher.family", "benchmarks": "teacher.data"}
"""Registry folders, each with the key of params.yaml that selects its module."""
REMEDY = "recompose it with `python -m infra.params`"


def write_hashes(workspace: Path) -> None:
    """Write the hashes of all stages in ``workspace``; files with the same content are not touched.

    Raises InputError if params.yaml lacks one of the three keys, or if a module is not valid Python.
    """
    values = read_yaml(workspace / "params.yaml", REMEDY)
    choices = {kind: _choice(values, key) for kind, key in CHOICES.items()}
    run, modules = RunFolder.of(workspace), dict[str, str]()
    for stage in available("stages"):
        try:
            hashes = code_hashes(f"rcm_core.stages.{stage}", choices)
        except SyntaxError as error:
            raise InputError(f"{error.filename}, line {error.lineno}: {error.msg}; correct it") from error
        modules |= hashes
        _write(run.code_hashes(stage), sorted(hashes.values()))
    _write(run.code_modules, modules)


def _choice(values: Any, key: str) -> str:
    section, name = key.split(".")
    found = values.get(section) if isinstance(values, dict) else None
    value = found.get(name) if isinstance(found, dict) else None
    if not isinstance(value, str):
        raise InputError(f"params.yaml has {key} = {value!r}, expected a name; {REMEDY}")
    return value


def _write(path: Path, value: Any) -> None:
    if not path.is_file() or path.read_text() != json_text(value):
        write_json(path, value)


if __name__ == "__main__":
    with exit_for_bad_input():
        write_hashes(Path.cwd())

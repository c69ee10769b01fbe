"""Reads params.yaml, with the choices in it checked against what there is."""

from __future__ import annotations

from pathlib import Path

import yaml

from rcm_core.config import Params, check
from rcm_core.errors import InputError
from rcm_core.registry import find


def load_params(path: Path) -> Params:
    """Reads and checks ``path``; InputError names the first bad key, what it holds and what is expected."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; run from the project root, or `dvc exp run`")
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    params = check(Params, raw, str(path))
    method = dict(params.method)
    module = find("methods", str(method.pop("name", "")))
    check(module.Config, method, f"{path}: method")
    find("models", params.teacher.family)
    find("data", params.teacher.data)
    return params

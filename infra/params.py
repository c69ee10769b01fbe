"""Compose params.yaml from conf/ and overrides with DVC's own Hydra composition, as ``dvc exp run -S`` does.

``python -m infra.params [override ...]`` composes in the current folder and checks the result.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rcm_core.config.load import load_params
from rcm_core.config.renamed import new_path
from rcm_core.config.sections import Params
from rcm_core.errors import InputError, exit_for_bad_input, nearest, one_line
from rcm_core.storage.formats import read_yaml

PLACE = "params.yaml"


def compose(workspace: Path, overrides: Sequence[str]) -> Params:
    """Write ``params.yaml`` of ``workspace``; an unknown group or key raises InputError and nothing is written."""
    with compose_aside(workspace, overrides) as (place, params):
        place.replace(workspace / PLACE)
    return params


@contextmanager
def compose_aside(workspace: Path, overrides: Sequence[str]) -> Iterator[tuple[Path, Params]]:
    """Yield the path and the content of what ``compose`` would write; the file is temporary."""
    from dvc.utils.hydra import compose_and_dump
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    conf = workspace.absolute() / "conf"
    _check_groups(conf, overrides)
    with tempfile.TemporaryDirectory(dir=workspace, prefix=".params-") as folder:
        place = Path(folder) / PLACE
        try:
            compose_and_dump(place, str(conf), None, "config", str(workspace), list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise InputError(
                f"overrides {' '.join(overrides)!r} do not fit conf/: {one_line(error, 1000)}"
            ) from error
        yield place, load_params(place, "conf/ with the overrides")


def load(workspace: Path) -> Params:
    """Read ``params.yaml`` of ``workspace`` without composing it."""
    return load_params(workspace / PLACE)


def teacher_overrides(workspace: Path, teacher: str | None, endpoint: str | None) -> list[str]:
    """Return overrides for ``teacher`` (a name in conf/teacher, else a location); none if params.yaml has it already.

    ``teacher.hash`` pins the content of the location in params.yaml only.
    """
    if teacher and (workspace / "conf" / "teacher" / f"{teacher}.yaml").is_file():
        return [f"teacher={teacher}"]
    section = load(workspace).teacher
    if not teacher or (teacher, endpoint or section.endpoint) == (section.source, section.endpoint):
        return []
    unpinned = ["teacher.hash=null"] if section.hash and teacher != section.source else []
    return [f"teacher.source={teacher}", *([f"teacher.endpoint={endpoint}"] if endpoint else []), *unpinned]


def _check_groups(conf: Path, overrides: Sequence[str]) -> None:
    for override in overrides:
        key, found, value = override.partition("=")
        if not found:
            raise InputError(f"override {override!r}: expected key=value, as in method=scm or train.batch=32")
        if new := new_path(key.lstrip("+")):
            raise InputError(f"override {override!r}: {key.lstrip('+')} is now called {new}; rename it")
        if (conf / key).is_dir():
            _check_preset(conf / key, value)


def _check_preset(group: Path, name: str, heirs: tuple[str, ...] = ()) -> None:
    """Raise InputError if ``group`` has no preset ``name``, or if one that it inherits from is missing or itself.

    ``heirs``: the presets that inherit from ``name``, the chosen one first.
    """
    source = f"conf/{group.name}/{heirs[-1]}.yaml inherits from " if heirs else ""
    if name in heirs:
        raise InputError(f"{source}{name!r}, which inherits from it; remove one of them from `defaults`")
    names = sorted(p.stem for p in group.glob("*.yaml"))
    if name not in names:
        raise InputError(
            f"{source}unknown {group.name} {name!r}{nearest(name, names)}; available: {', '.join(names)}"
        )
    for base in bases_of(group / f"{name}.yaml"):
        _check_preset(group, base, (*heirs, name))


def bases_of(preset: Path) -> list[str]:
    """Return the presets of the same group that ``preset`` inherits from."""
    content = read_yaml(preset, "correct this preset")
    defaults = content.get("defaults", []) if isinstance(content, dict) else []
    return [base for base in defaults if isinstance(base, str) and base != "_self_"]


if __name__ == "__main__":
    with exit_for_bad_input():
        compose(Path.cwd(), sys.argv[1:])

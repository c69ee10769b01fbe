"""The family of a pipeline: one of the package's, or the user's own adapter file."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, UnionType
from typing import cast

from rcm_core.errors import InputError, named_line
from rcm_core.pipelines.folder import read_part
from rcm_core.protocols import Family, Tokens
from rcm_core.registry import available, find_family


def family_at(place: Path, pipeline: Path | None) -> tuple[Family, Path]:
    """Return a family and a pipeline folder: ``place`` is the folder, or an adapter file for ``pipeline``.

    Raises InputError if ``place`` is no valid adapter.
    """
    if place.is_dir():
        if pipeline is not None:
            raise InputError(
                f"{place} is a folder, but --pipeline requires an adapter file (.py); omit --pipeline"
            )
        return family_of(place), place
    if place.suffix != ".py" or not place.is_file():
        raise InputError(
            f"{place} is neither a pipeline folder nor an existing adapter file (.py); correct it"
        )
    if pipeline is None:
        raise InputError(
            f"{place} is an adapter, but --pipeline is missing; name the pipeline folder with --pipeline"
        )
    spec = spec_from_file_location(place.stem, place)
    assert spec is not None and spec.loader is not None  # noqa: PT018 - a .py file has both
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's code may raise anything, even SystemExit
        raise InputError(f"{place} cannot be imported: {named_line(error)}; correct the file") from error
    names = [*Family.__annotations__, *(n for n in vars(Family) if not n.startswith("_"))]
    missing = sorted(name for name in names if not hasattr(module, name))
    if missing:
        raise InputError(
            f"{place} lacks {', '.join(missing)}; define them as rcm_core.protocols.Family describes"
        )
    _refuse_types(place, module)
    return cast("Family", module), pipeline


def _refuse_types(place: Path, module: ModuleType) -> None:
    """Raise InputError if an attribute of the adapter has another type than in ``Family``."""
    functions = [name for name in vars(Family) if not name.startswith("_")]
    kinds: dict[str, tuple[str, type | UnionType]] = {
        "blocks": ("a tuple of class names", tuple),
        "tokens": ("Tokens or None", Tokens | None),
        "time_layer": ("a string or None", str | None),
        **dict.fromkeys(("last_layer", "time_features", "time_embedder", "network_class"), ("a string", str)),
    }
    wrong = [(n, "a function", getattr(module, n)) for n in functions if not callable(getattr(module, n))]
    values = {name: getattr(module, name) for name in kinds}
    wrong += [(n, kinds[n][0], v) for n, v in values.items() if not isinstance(v, kinds[n][1])]
    if not wrong and not all(isinstance(name, str) for name in module.blocks):
        wrong.append(("blocks", kinds["blocks"][0], module.blocks))
    for name, expected, value in wrong:
        raise InputError(
            f"{place} has {name} = {value!r}, expected {expected}; define it as rcm_core.protocols.Family describes"
        )


def family_of(folder: Path) -> Family:
    """Return the family of the network in ``folder/transformer``; InputError if no family matches."""
    name = read_part(folder, "transformer/config.json").get("_class_name")
    families = [find_family(family) for family in available("models")]
    ours = [family for family in families if family.network_class == name]
    if not ours:
        known = ", ".join(family.network_class for family in families)
        raise InputError(
            f"{folder} contains a {name}, expected one of {known}; choose such a pipeline or write an adapter file"
        )
    return ours[0]

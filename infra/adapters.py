"""A family that lies outside the package: a file of the user's own."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from rcm_core.errors import InputError
from rcm_core.protocols import Family
from rcm_core.registry import family_of


def family_at(place: Path, pipeline: Path | None) -> tuple[Family, Path]:
    """The family to use for a pipeline, and its folder: ``place`` is either, or an adapter for ``pipeline``.

    InputError if the adapter is not one.
    """
    if place.is_dir():
        if pipeline is not None:
            raise InputError(f"{place} is a folder already; give --pipeline with an adapter file only")
        return family_of(place), place  # type: ignore[return-value]
    if place.suffix != ".py" or not place.is_file():
        raise InputError(f"{place} is neither a folder nor an adapter file (.py) that exists")
    if pipeline is None:
        raise InputError(f"{place} is an adapter; say with --pipeline which folder it is for")
    spec = spec_from_file_location(place.stem, place)
    assert spec is not None and spec.loader is not None  # noqa: PT018 - a .py file has both
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        reason = " ".join(str(error).split())  # one sentence, whatever it raised
        raise InputError(f"{place} cannot be imported: {type(error).__name__}: {reason}") from error
    names = [*Family.__annotations__, *(n for n in vars(Family) if not n.startswith("_"))]
    missing = sorted(name for name in names if not hasattr(module, name))
    if missing:
        raise InputError(f"{place} lacks {', '.join(missing)}; rcm_core.protocols.Family says what each is")
    return module, pipeline  # type: ignore[return-value]

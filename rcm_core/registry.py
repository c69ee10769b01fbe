"""The folder is the registry: ``find("methods", "rcm")`` is the module ``rcm_core.methods.rcm``."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING, cast

from rcm_core.errors import InputError, nearest

if TYPE_CHECKING:  # protocols imports torch
    from rcm_core.protocols import Benchmark, Family

FAMILIES, BENCHMARKS = "models", "benchmarks"
"""Registry folders. ``find`` is called with these names, not literals: a literal would make the code hash count the
whole folder.
"""


def available(kind: str) -> list[str]:
    """Return the names of the implementations of ``kind`` (a subpackage of rcm_core), sorted."""
    package = importlib.import_module(f"rcm_core.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__))


def find(kind: str, name: str) -> ModuleType:
    """Return the module that implements ``name``; if there is none, InputError suggests the nearest name."""
    names = available(kind)
    if name not in names:
        noun = {"methods": "method", "models": "family", "benchmarks": "data set"}.get(kind, kind)
        raise InputError(f"unknown {noun} {name!r}{nearest(name, names)}; available: {', '.join(names)}")
    return importlib.import_module(f"rcm_core.{kind}.{name}")


def find_family(name: str) -> Family:
    """Return the family ``name`` of ``rcm_core.models``; raises as ``find``."""
    return cast("Family", find(FAMILIES, name))


def find_benchmark(name: str) -> Benchmark:
    """Return the benchmark ``name`` of ``rcm_core.benchmarks``; raises as ``find``."""
    return cast("Benchmark", find(BENCHMARKS, name))


def every(kind: str) -> list[ModuleType]:
    """Return the modules of all implementations of ``kind``, sorted by name."""
    return [find(kind, name) for name in available(kind)]

"""The folder is the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

import rcm_core
from rcm_core.errors import InputError, nearest
from rcm_core.registry import available, find

KINDS = ("methods", "models", "benchmarks", "stages")


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_found_by_its_name(kind: str) -> None:
    files = {p.stem for p in (Path(rcm_core.__file__).parent / kind).glob("*.py")} - {"__init__"}
    assert set(available(kind)) == files
    for name in files:
        assert find(kind, name).__name__ == f"rcm_core.{kind}.{name}"


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("methods", "rcmm", r"unknown method 'rcmm' \(did you mean 'rcm'\?\); available: "),
        ("models", "van", r"unknown family 'van' \(did you mean 'wan'\?\)"),
        (
            "benchmarks",
            "moving-digits",
            r"unknown data set 'moving-digits' \(did you mean 'moving_digits'\?\)",
        ),
        ("methods", "", r"unknown method ''; available: "),
        ("methods", "__init__", "unknown method '__init__'"),
        ("methods", "rcm.rcm", "unknown method 'rcm.rcm'"),
    ],
)
def test_an_unknown_name_offers_the_nearest(kind: str, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        find(kind, name)


def test_nothing_is_offered_when_nothing_is_near() -> None:
    assert nearest("zzz", ["rcm", "scm"]) == ""

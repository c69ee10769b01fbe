"""Methods that the ladder of tangents changes; the others have no tangent to step down from."""

from __future__ import annotations

import pytest
from presets import preset

from rcm_core.registry import available
from rcm_core.training.distill import build_method

WITH_TANGENTS = {"rcm", "scm", "tbcm", "sana_sprint", "meanflow"}


@pytest.mark.parametrize("name", available("methods"))
def test_a_method_is_another_by_its_tangent_if_it_has_one(name: str) -> None:
    method = preset(name)["method"]
    exact, semi = (build_method(method, kind) for kind in ("exact", "semi"))
    assert (exact != semi) is (name in WITH_TANGENTS)
    assert exact == build_method(method, "exact")


def test_rcm_in_discrete_time_has_no_tangent() -> None:
    section = preset("rcm")["method"]
    section["discrete"] = {"points": 48, "skip": 1, "shift": 5.0, "solver": "euler"}
    assert build_method(section, "exact") == build_method(section, "discrete")


def test_meanflow_has_one_rung_below() -> None:
    section = preset("meanflow")["method"]
    assert build_method(section, "semi") == build_method(section, "discrete")


def test_tbcm_has_as_many_rows_as_pairs() -> None:
    section = preset("tbcm")["method"]
    assert build_method({**section, "pairs": 7}, "exact").requirements.points_per_sample == 7

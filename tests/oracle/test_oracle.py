"""Our code gives the outputs of the authors' published code for the same inputs (README.md describes the cases)."""

from __future__ import annotations

from collections import Counter

import oracle_adversarial
import oracle_flow_methods
import oracle_matching
import oracle_methods
import oracle_schedules
import oracle_terms
import pytest
from oracle import DIFFERENT, Case, cases, error

CASES = list(cases())
SAME = [case for case in CASES if str(case) not in DIFFERENT]
MODULES = (
    oracle_schedules,
    oracle_terms,
    oracle_adversarial,
    oracle_methods,
    oracle_matching,
    oracle_flow_methods,
)
RUNS = {kind: run for module in MODULES for kind, run in module.RUNS.items()}


def test_every_case_is_there():
    assert Counter(case.method for case in CASES) == {
        "rcm": 79,
        "dcm": 8,
        "scm": 33,
        "dmd2": 34,
        "cdm": 17,
        "sana_sprint": 25,
        "tbcm": 15,
        "meanflow": 29,
        "ect": 19,
        "lcm": 10,
        "kd": 4,
    }
    assert {str(case) for case in CASES} >= DIFFERENT


@pytest.mark.parametrize("case", SAME, ids=str)
def test_ours_is_the_release_s(case: Case):
    found = RUNS[case.kind](case)
    assert set(found) == set(case.outputs)
    errors = {name: error(found[name], case.outputs[name]) for name in found}
    assert max(errors.values()) <= case.tolerance, errors

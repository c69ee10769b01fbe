"""The error for an old key of params.yaml gives its new name."""

from __future__ import annotations

import pytest
from presets import preset

from rcm_core.config.base import check
from rcm_core.config.renamed import RENAMED, new_name
from rcm_core.config.sections import EvaluateSection, TrajectoriesSection
from rcm_core.errors import InputError
from rcm_core.registry import available, find

OWNERS = [
    TrajectoriesSection,
    EvaluateSection,
    *(find("methods", name).Config for name in available("methods")),
]


@pytest.mark.parametrize(("old", "new"), [(old, new) for old, names in RENAMED.items() for new in names])
def test_every_row_leads_to_a_key_that_exists(old: str, new: str) -> None:
    owners = [owner for owner in OWNERS if new in owner.model_fields]
    assert owners
    for owner in owners:
        assert old not in owner.model_fields
        assert new_name(old, owner.model_fields) == new
        with pytest.raises(
            InputError, match=rf"^here: unknown key '{old}': it is now called '{new}'; rename it$"
        ):
            check(owner, {old: 1}, "here")


def test_an_old_name_is_no_hint_where_the_new_one_is_unknown() -> None:
    config = find("methods", "kd").Config
    section = {key: value for key, value in preset("kd")["method"].items() if key != "name"}
    with pytest.raises(InputError, match=r"unknown key 'merge'.*known here"):
        check(config, section | {"merge": 1}, "here")

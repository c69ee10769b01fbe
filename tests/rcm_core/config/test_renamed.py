"""The error for an old key of params.yaml gives its new name."""

from __future__ import annotations

import pytest
from presets import preset

from rcm_core.config.base import check
from rcm_core.config.renamed import RENAMED, RENAMED_VALUES, new_name, new_path
from rcm_core.config.sections import EvaluateSection, TrajectoriesSection
from rcm_core.errors import InputError
from rcm_core.registry import available, find

OWNERS = [
    TrajectoriesSection,
    EvaluateSection,
    *(find("methods", name).Config for name in available("methods")),
]


@pytest.mark.parametrize(
    ("old", "new"), [(old, new) for old, names in RENAMED.items() for new in names.values()]
)
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


def test_a_path_leads_to_the_key_of_its_section() -> None:
    assert new_path("trajectories.routes") == "trajectories.keep_trajectories"
    assert new_path("method.routes") == "method.trajectories"
    assert new_path("routes") == "trajectories.keep_trajectories or method.trajectories"
    assert new_path("train.merge") is None
    assert new_path("method.warmup") is None


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [(key, old, new) for key, values in RENAMED_VALUES.items() for old, new in values.items()],
)
def test_the_error_for_an_old_value_gives_the_new_one(key: str, old: str, new: str) -> None:
    config = find("methods", "dmd2").Config
    section = {name: value for name, value in preset("dmd2-gan")["method"].items() if name != "name"}
    check(config, section | {key: new}, "here")
    with pytest.raises(
        InputError, match=rf"^here: {key} = '{old}': this value is now called '{new}'; rename it$"
    ):
        check(config, section | {key: old}, "here")

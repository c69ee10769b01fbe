"""Every value of a published preset has its source beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from presets import CONF, PUBLISHED, comments, preset

SOURCE = re.compile(r"\[([A-Z])(?:[ ,:][^\]]+)?\]")
"""``[P]``, ``[R 111]``, ``[R some/file.py:33: what it says]``: a source that the head of the file defines."""


def keys(content: Mapping[str, Any], above: str = "") -> list[str]:
    found = []
    for key, value in content.items():
        name = f"{above}.{key}".lstrip(".")
        found += keys(value, name) if isinstance(value, dict) else [name]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_value_of_a_published_preset_has_its_source(name: str) -> None:
    beside = comments(name)
    assert set(beside) == set(keys(preset(name)))
    without = [key for key, comment in beside.items() if key != "method.name" and not SOURCE.search(comment)]
    assert without == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_source_is_defined_at_the_head_and_used(name: str) -> None:
    head = re.findall(r"^# \[([A-Z])\] = (.+)$", (CONF / f"{name}.yaml").read_text(encoding="utf-8"), re.M)
    used = {tag for comment in comments(name).values() for tag in SOURCE.findall(comment)}
    assert used == {tag for tag, _ in head}
    assert any(re.search(r"arXiv \d{4}\.\d{5}|\w+/\w+ @[0-9a-f]{8}", what) for _, what in head)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_states_its_optimiser(name: str) -> None:
    """No setting of the optimiser is inherited from conf/config.yaml."""
    assert {"lr_warmup", "eps", "clip", "betas", "weight_decay", "ema_lengths", "lr"} <= set(
        preset(name)["train"]
    )

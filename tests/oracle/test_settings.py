"""Presets and published configurations: every number is the release's, or docs/methods.md explains why not."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from presets import CONF, PUBLISHED, comment_of, preset

HERE = Path(__file__).parent
ROWS: list[dict[str, Any]] = json.loads((HERE / "settings.json").read_text())
DOCS = HERE.parents[1] / "docs" / "methods.md"
HEADING = "## Where a preset differs from its release"
DIGITS = 1e-3
"""Relative precision of the presets, which have four digits."""


def value_of(name: str, key: str) -> Any:
    """Return the preset's value, or that of conf/config.yaml; for several roles, the student's."""
    for content in (preset(name), yaml.safe_load((CONF.parent / "config.yaml").read_text())):
        found: Any = content
        for part in key.split("."):
            found = found.get(part, KeyError) if isinstance(found, dict) else KeyError
        if found is not KeyError:
            return found["student"] if isinstance(found, dict) else found
    raise KeyError(f"{name}: {key}")


def official(row: dict[str, Any]) -> Any:
    """Return the release's value; losses over heads are means in both codes."""
    return row.get("official_with_mean_over_heads", row["official"])


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, list) and isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, str) or isinstance(theirs, str) or ours is None or theirs is None:
        return bool(ours == theirs)
    return math.isclose(ours, theirs, rel_tol=DIGITS)


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?", text)]


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def mentioned(value: Any, text: str) -> bool:
    """Return whether ``text`` contains ``value``, a number or a word."""
    if isinstance(value, str):
        return value in text
    return any(same(number, value) for number in numbers(text))


def documented() -> dict[tuple[str, str], list[str]]:
    """Return (preset, key) -> cells "ours", "release" and "why" of the page's table."""
    table = DOCS.read_text().split(HEADING)[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line
    ]
    rows = {}
    for names, key, *rest in cells[2:]:
        for name in names.split(","):
            rows[name.strip(" `"), key.strip("`")] = rest
    return rows


DIFFERENT = [row for row in ROWS if not same(value_of(row["preset"], row["key"]), official(row))]


def test_every_difference_from_a_release_is_in_the_table_and_nothing_else_is():
    assert {(row["preset"], row["key"]) for row in DIFFERENT} == set(documented())


@pytest.mark.parametrize("row", DIFFERENT, ids=lambda row: f"{row['preset']}-{row['key']}")
def test_the_table_and_the_preset_s_comment_have_both_numbers(row):
    ours, theirs = value_of(row["preset"], row["key"]), official(row)
    cells = documented()[row["preset"], row["key"]]
    comment = comment_of(row["preset"], row["key"])
    pairs = zip(leaves(ours), leaves(theirs), strict=True)
    first_ours, first_theirs = next((a, b) for a, b in pairs if not same(a, b))
    assert mentioned(first_ours, cells[0])
    assert mentioned(first_theirs, cells[1])
    assert len(cells[2].split()) > 3
    assert mentioned(first_theirs, comment)


def test_all_208_rows_are_compared():
    assert len(ROWS) == 208
    published = set(PUBLISHED)
    compared = {row["preset"] for row in ROWS}
    # the release has no configuration for Cosmos; ECT's preset is of the method's own name
    assert published - compared == {"rcm-cosmos-0.6b", "rcm-cosmos-2b", "rcm-cosmos-14b"}
    assert compared - published == {"ect"}

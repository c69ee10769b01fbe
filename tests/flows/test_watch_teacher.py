"""Contents of a teacher that are announced, and the ids of the events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT

from flows.watch_teacher import next_event, reason_not_to_watch
from infra.params import compose


def test_a_teacher_that_returns_to_an_earlier_content_is_announced_again() -> None:
    remembered: Any = None
    identities = []
    for found in ("a", "b", "a", "b", "a"):
        news = next_event(remembered, "slug", found)
        assert news is not None
        # a watch that died before remembering emits the same event again, and the server drops it
        assert next_event(remembered, "slug", found) == news
        identities.append(news[0])
        remembered = news[1]
        assert next_event(remembered, "slug", found) is None
    assert len(set(identities)) == 5
    other = next_event(None, "other", "a")
    assert other is not None
    assert other[0] != identities[0]


def test_what_earlier_versions_remembered_is_understood() -> None:
    assert next_event("a", "slug", "a") is None
    news = next_event("a", "slug", "b")
    assert news is not None
    assert news[1] == {"hash": "b", "count": 2}


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([], "teacher.hash pins the content of data/mini/teacher/pipeline"),
        (["teacher=mini-train"], "this project trains the teacher"),
        (["teacher=folder", "teacher.source=/teacher"], None),
    ],
)
def test_a_teacher_that_cannot_change_is_not_watched(
    tmp_path: Path, chosen: list[str], reason: str | None
) -> None:
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    found = reason_not_to_watch(compose(tmp_path, chosen).teacher)
    assert found is reason is None or str(found).startswith(str(reason))

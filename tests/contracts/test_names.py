"""The name of a function is a verb or its result, never a bare participle ("drawn", "held")."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("rcm_core", "infra", "flows", "experiments", "scripts", "kernels")
IRREGULAR = re.compile(
    "begun|born|bought|bound|broken|brought|built|caught|chosen|done|drawn|driven|fed|felt|found|fought|frozen|given"
    "|gone|grown|heard|held|hidden|kept|known|laid|left|lent|lost|made|meant|met|paid|said|seen|sent|shown|sold|spent"
    "|spoken|stood|struck|sworn|taken|taught|thought|thrown|told|torn|understood|won|worn|written"
)
VERBS = frozenset({"embed", "exceed", "feed", "need", "proceed", "seed", "shed", "speed", "succeed"})


def is_participle(name: str) -> bool:
    word = name.strip("_")
    return bool(IRREGULAR.fullmatch(word)) or (word.endswith("ed") and "_" not in word and word not in VERBS)


def functions(text: str) -> Iterator[str]:
    """Yield the names of all functions, except properties, which may be adjectives like attributes."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
            if not decorators & {"property", "cached_property"}:
                yield node.name


def test_participles_are_recognised() -> None:
    text = "@property\ndef ended(self): ...\ndef _drawn(): ...\ndef seed(): ...\nasync def composed(): ..."
    assert [name for name in functions(text) if is_participle(name)] == ["_drawn", "composed"]


@pytest.mark.parametrize("place", PLACES)
def test_no_function_is_a_bare_participle(place: str) -> None:
    names = {p: list(functions(p.read_text())) for p in sorted((ROOT / place).rglob("*.py"))}
    assert any(names.values())
    found = [f"{p.relative_to(ROOT)}: {n}" for p, all_ in names.items() for n in all_ if is_participle(n)]
    assert found == []

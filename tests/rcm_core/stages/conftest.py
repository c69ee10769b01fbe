"""Shared fixtures of the tests of stages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import others
import pytest
from imports import SHAPES


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Workspaces with a teacher and prompts, by family; tests copy them."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            assert others.ready(made[family], family) == SHAPES[family]
        return made[family]

    return of

"""Fixtures that the tests of the loop share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tiny_run: Path) -> Path:
    """The pipeline of the tiny run's teacher."""
    return tiny_run / "runs/teacher/pipeline"

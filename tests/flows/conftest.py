"""A small project with the real flows and infra, and eight instant stages."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from projects import Toy, free_port, make_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    """A separate git repository with its live state in ``.rcm``; its servers end with the module."""
    root = make_toy(tmp_path_factory.mktemp("toy") / "project")
    toy = Toy(root, free_port(), uuid.uuid4().hex)
    yield toy
    toy.rcm("stop")
    assert toy.processes() == []

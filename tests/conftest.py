"""Shared fixtures."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import interpreted  # noqa: F401 - before anything imports triton
import pytest
import torch.distributed as dist
from filelock import FileLock
from outputs import outputs_checked
from progress import FileProgress
from tiny import prepare, run_all, tiny_values

from infra.executors.local import LocalExecutor

LONG = ("system", "flows", "golden", "infra", "experiments", "scripts")
"""Folders with the slowest test files."""


def pytest_configure(config: pytest.Config) -> None:
    """Print each file's name when its first test starts, if several processes run the tests (`make test`)."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        config.pluginmanager.register(FileProgress())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that no worker waits for another at the end."""
    items.sort(key=lambda item: not {*LONG} & {*item.path.parts})


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use an empty user cache for this process and its children.

    ``families.build`` keeps its pipelines there, too.
    """
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("RCM_CACHE", str(folder))
        patch.setenv("RCM_TEST_PIPELINES", str(tmp_path_factory.mktemp("pipelines")))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def every_output_is_written() -> Iterator[None]:
    """Check every run of a stage in a test against dvc.yaml's list of outputs."""
    with outputs_checked():
        yield


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of one rank, as every executor provides to a loop."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def values() -> dict[str, Any]:
    """Return small parameters that a test may change."""
    return tiny_values()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A read-only workspace in which all eight stages have run, once for all of pytest's workers."""
    if worker_id == "master":
        return _run_once(tmp_path_factory.mktemp("tiny"))
    shared = tmp_path_factory.getbasetemp().parent / "tiny"
    with FileLock(shared.with_suffix(".lock")):
        return _run_once(shared)


def _run_once(folder: Path) -> Path:
    whole = folder.with_suffix(".whole")
    if not whole.exists():
        shutil.rmtree(folder, ignore_errors=True)  # left by a process that failed half-way
        run_all(folder, prepare(folder, tiny_values()), LocalExecutor(folder))
        whole.touch()
    return folder


@pytest.fixture
def workspace(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the tiny run that a test may damage."""
    folder = tmp_path / "workspace"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns(".rcm"))
    return folder

"""A stage's output is streamed, and the stage ends together with its child processes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest
from prefect.client.schemas import TaskRun
from prefect.states import Failed

from flows.tasks import HINTS, OUTAGE_DELAYS, OUTAGE_RETRIES, SKIPPED, run_stage, stream, worth_retrying
from infra.workspace import Workspace
from rcm_core.errors import InputError, OutageError

FAMILY = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, flush=True)
child.wait()
"""


class StopError(Exception):
    """Exception in place of a cancellation."""


def test_lines_and_status_arrive(tmp_path: Path) -> None:
    lines: list[str] = []
    command = ["sh", "-c", "echo one; echo two >&2; exit 3"]
    assert stream(command, Workspace(tmp_path, tmp_path, "x"), os.environ, lines.append) == 3
    assert lines == ["one", "two"]


def test_cancelled_it_takes_its_children_along(tmp_path: Path) -> None:
    seen: list[int] = []

    def cancel(line: str) -> None:
        seen.append(int(line))
        raise StopError

    with pytest.raises(StopError):
        stream([sys.executable, "-c", FAMILY], Workspace(tmp_path, tmp_path, "x"), os.environ, cancel)
    _, left = psutil.wait_procs([psutil.Process(p) for p in seen if psutil.pid_exists(p)], timeout=5)
    assert left == []


@pytest.mark.parametrize(
    ("failure", "attempts", "again"),
    [
        (InputError("no"), 1, False),
        (RuntimeError("lost"), 2, True),
        (RuntimeError("lost"), 3, False),
        (OutageError("away"), 3, True),
    ],
)
def test_only_what_may_pass_is_tried_again(failure: Exception, attempts: int, again: bool) -> None:
    assert (
        worth_retrying(None, TaskRun(task_key="", dynamic_key="", run_count=attempts), Failed(data=failure))
        is again
    )


def test_an_unattended_run_waits_for_a_storage_for_a_day() -> None:
    waits = [OUTAGE_DELAYS[min(n, len(OUTAGE_DELAYS) - 1)] for n in range(OUTAGE_RETRIES)]
    assert run_stage.retries == OUTAGE_RETRIES
    assert sum(waits) > 23 * 3600


@pytest.mark.parametrize(
    "line",
    ["Stage 'train' didn't change, skipping", "Stage 'train' is cached - skipping run, checking out outputs"],
)
def test_dvc_s_skipping_is_noticed(line: str) -> None:
    assert SKIPPED.match(line)
    assert not SKIPPED.match("Running stage 'train':")


def test_dvc_s_advice_is_left_out_and_nothing_else() -> None:
    assert HINTS.fullmatch("Use `dvc push` to send your updates to remote storage.")
    assert HINTS.fullmatch("")
    assert HINTS.fullmatch("Running stage 'code':")
    assert HINTS.fullmatch("> python -m infra.code_hashes")
    assert not HINTS.fullmatch("Running stage 'train':")
    assert not HINTS.fullmatch("ERROR: failed to reproduce 'train'")

"""A stage as a Prefect task: it runs ``dvc repro --single-item`` and writes its output to the run's log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from infra.workspace import Workspace
from rcm_core.errors import BAD_INPUT, OUTAGE, InputError, OutageError

GRACE_SECONDS = 20
RETRY_DELAYS = (5.0, 30.0)
"""Seconds before each retry of a failed stage."""
OUTAGE_DELAYS = (*RETRY_DELAYS, 60.0, 120.0, 300.0)
"""Seconds before each retry while a storage does not answer; the last delay is repeated."""
OUTAGE_RETRIES = 288
"""Retries of an unattended run during an outage: about a day."""
EXITED = re.compile(r"exited with (\d+)")
"""Pattern of DVC's report of the exit status of ``infra.launch``."""
REFUSALS = {BAD_INPUT: InputError, OUTAGE: OutageError}
CODE = "code"
"""DVC stage that writes the code hashes on which all other stages depend; each task runs it first."""

SKIPPED = re.compile(r"^Stage '.*' (didn't change, skipping|is cached - skipping run)")
HINTS = re.compile(
    r"|To track the changes with git, run:|\tgit add .*|To enable auto staging, run:"
    r"|\tdvc config core.autostage true|Use `dvc push` .*|Data and pipelines are up to date\."
    r"|(Generating|Updating) lock file 'dvc.lock'|Running stage 'code':|> python -m infra\.code_hashes"
)


def worth_retrying(task: Any, task_run: Any, state: State[Any]) -> bool:  # noqa: ARG001
    """Return whether to retry: never after bad input, always after an outage, else a few times."""
    failure = state.result(raise_on_failure=False)
    if isinstance(failure, OutageError):
        return True
    return not isinstance(failure, InputError) and int(task_run.run_count) <= len(RETRY_DELAYS)


@task(
    task_run_name="{stage}",
    retries=OUTAGE_RETRIES,
    retry_delay_seconds=list(OUTAGE_DELAYS),
    retry_condition_fn=worth_retrying,
    cache_policy=NO_CACHE,
)
def run_stage(stage: str, space: Workspace, env: Mapping[str, str], force: bool = False) -> State[None]:
    """Bring ``stage`` up to date; the state is named Skipped if DVC had nothing to do.

    Raises InputError for bad input and OutageError if a storage does not answer, both with the stage's own message;
    RuntimeError for any other failure.
    """
    logger = get_run_logger()
    skipped, complaint, exited = False, "", 0

    def note(line: str) -> None:
        nonlocal skipped, complaint, exited
        if HINTS.fullmatch(line):
            return
        skipped = skipped or bool(SKIPPED.match(line))
        if line.startswith("error: "):
            complaint = line.removeprefix("error: ")
        elif found := EXITED.search(line):
            complaint, exited = complaint or line, int(found[1])
        logger.info("%s", line)

    command = [sys.executable, "-m", "dvc", "repro", "--single-item", CODE, stage]
    command += ["--force"] if force else []
    status = stream(command, space, env, note)
    if status == 0:
        return Completed(name="Skipped") if skipped else Completed()
    if exited in REFUSALS:
        raise REFUSALS[exited](complaint)
    raise RuntimeError(f"stage {stage} failed (status {status}); its last lines are above")


def stream(command: list[str], space: Workspace, env: Mapping[str, str], each: Callable[[str], None]) -> int:
    """Run ``command`` in ``space``, call ``each`` on every line of its output, and return its exit status.

    On an early exit (cancellation) the whole process group gets SIGTERM, then SIGKILL.
    """
    with subprocess.Popen(
        command,
        cwd=space.path,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                each(line.rstrip())
            return process.wait()
        finally:
            if process.poll() is None:
                _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.communicate(timeout=GRACE_SECONDS)  # until the whole group has closed the pipe
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

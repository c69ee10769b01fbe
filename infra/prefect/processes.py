"""Daemons that we start, record and stop: Prefect's server and worker."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from rcm_core.storage.files import write_json

GRACE_SECONDS = 15
FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""Environment variable in which Prefect names the flow run to the process that executes it and to its children."""


@dataclass(frozen=True)
class Daemon:
    """A process in its own session, with ``<name>.json`` (record) and ``<name>.log`` in ``folder``."""

    folder: Path
    name: str

    @property
    def record(self) -> Path:
        return self.folder / f"{self.name}.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def running(self) -> psutil.Process | None:
        """Return the process if it is still the one that was started (process ids are reused)."""
        if not self.record.is_file():
            return None
        known = json.loads(self.record.read_text())
        try:
            process = psutil.Process(known["pid"])
            same = process.create_time() == known["created"] and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None

    def facts(self) -> dict[str, str]:
        """Return the facts passed to ``start``; empty if the process is gone."""
        return dict(json.loads(self.record.read_text())["facts"]) if self.running() else {}

    def start(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], facts: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start ``command`` with its output in the log, and record it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            created = psutil.Process(process.pid).create_time()
            write_json(self.record, {"pid": process.pid, "created": created, "facts": dict(facts)})
        except BaseException:  # even an interrupt must not leave an unrecorded process
            process.kill()
            raise
        return process

    def stop(self) -> bool:
        """End the process and its descendants; return False if it does not run."""
        process = self.running()
        if process is not None:
            end_tree(process)
        self.record.unlink(missing_ok=True)
        return process is not None

    def last_words(self) -> str:
        """Return the end of the log, for an error message."""
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.is_file() else []
        return " | ".join(line.strip() for line in lines[-3:])


def of_flow_runs() -> dict[str, list[psutil.Process]]:
    """Return all processes of this user that work for flow runs, by run id."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            run = process.environ().get(FLOW_RUN)
            if run and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(run, []).append(process)
    return found


def is_engine(process: psutil.Process) -> bool:
    """Return whether ``process`` executes a flow run itself (not a stage or Ray below it)."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.cmdline()[1:3] == ["-m", "prefect.engine"]
    return False


def engines_of(home: Path) -> list[psutil.Process]:
    """Return the engines whose PREFECT_HOME is ``home``."""
    found = []
    for process in [p for processes in of_flow_runs().values() for p in processes if is_engine(p)]:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.environ().get("PREFECT_HOME") == str(home):
                found.append(process)
    return found


def end_tree(process: psutil.Process) -> None:
    """Send SIGTERM to ``process``, which may end its own children; then to the remaining descendants; then SIGKILL."""
    try:
        descendants = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return
    left = _end([process], signal.SIGTERM) + _end(descendants, signal.SIGTERM)
    _end(left, signal.SIGKILL)


def _end(processes: list[psutil.Process], number: signal.Signals) -> list[psutil.Process]:
    """Send signal ``number``, wait a while, and return the processes that still run."""
    for process in processes:
        _signal(process, number)
    return list(psutil.wait_procs(processes, timeout=GRACE_SECONDS)[1])


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return


def python_command(*module: str) -> list[str]:
    """Return the command prefix that runs a module with this Python."""
    return [sys.executable, "-m", *module]

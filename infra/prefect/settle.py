"""Settle the runs of dead processes: end them, free their concurrency slots, and continue them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from infra.prefect.api import Api
from infra.prefect.processes import end_tree, is_engine, of_flow_runs
from infra.prefect.server import POOL, Local
from infra.workspace import discard, in_use, run_name, worktrees

DEPLOYMENT = "rcm-distill/rcm-distill"
CONTINUED = 10
"""Maximum number of times a run is continued; then a person must look at it."""
SILENT_SECONDS = 70
"""Seconds without a heartbeat after which a run on another machine is dead: two heartbeats of 30 s are missing. It
holds its slot until then: a lease is renewed at least 75 seconds before it expires."""
CANCEL_SECONDS = 45
"""Seconds after which a cancelling run is ended here; its worker has 30 seconds to end it first."""
GONE = "its process is gone (power cut, kill or restart)"

Processes = Mapping[str, list[psutil.Process]]


@dataclass
class Settler:
    """Settle all runs that hold a slot of the pool; the object remembers how long each has been silent."""

    root: Path
    server: Api
    clock: Callable[[], float] = time.monotonic
    _signs: dict[str, tuple[str, float]] = field(default_factory=dict)

    def look(self) -> list[str]:
        """Settle every dead run and continue what can be continued; return a line for each.

        Raises InputError (UnreachableError) if the server does not answer; all silences then restart at zero.
        """
        try:
            return [*self._settle(), *self._continue()]
        except Exception:
            self._signs.clear()
            raise

    def _settle(self) -> Iterator[str]:
        runs = self.server.list_unfinished(POOL)
        self._signs = {k: v for k, v in self._signs.items() if k in {run["id"] for run in runs}}
        if not runs:
            return
        processes = of_flow_runs()
        for run in runs:
            # Dead: no process, and the run did not change during the search for one.
            if self._is_dead(run, processes) and self._is_unchanged(run):
                for process in processes.get(run["id"], []):
                    end_tree(process)
                yield self._end(run)

    def _is_dead(self, run: Mapping[str, Any], processes: Processes) -> bool:
        worker, state = run["labels"].get("prefect.worker.name"), run["state"]["type"]
        if worker != Local(self.root).worker_name:
            return self._is_silent(run) and (run["start_time"] is not None or not self._is_online(worker))
        if any(is_engine(p) for p in processes.get(run["id"], [])):
            return state == "CANCELLING" and self._seconds(run["id"], run["state"]["id"]) > CANCEL_SECONDS
        if state == "PENDING" and self._is_starting(run):
            return self._is_silent(run)
        return True

    def _is_starting(self, run: Mapping[str, Any]) -> bool:
        """Return whether the worker that took the run still runs."""
        worker = Local(self.root).worker.running()
        taken = datetime.fromisoformat(run["state"]["timestamp"]).timestamp()
        return worker is not None and worker.create_time() < taken

    def _is_online(self, worker: str | None) -> bool:
        return any(w["name"] == worker for w in self.server.online_workers(POOL))

    def _is_silent(self, run: Mapping[str, Any]) -> bool:
        """Return whether the last sign of life is too old: a heartbeat, or the last state of a run that has not begun.

        A run that has begun and never sent a heartbeat has heartbeats disabled and never counts as silent.
        """
        sign = _last_heartbeat(self.server, run["id"]) if run["start_time"] else run["state"]["id"]
        return bool(sign) and self._seconds(run["id"], sign) > SILENT_SECONDS

    def _seconds(self, run: str, sign: str) -> float:
        """Return for how long ``sign`` has been the run's newest, by this process's clock."""
        if self._signs.get(run, ("", 0.0))[0] != sign:
            self._signs[run] = (sign, self.clock())
        return self.clock() - self._signs[run][1]

    def _is_unchanged(self, run: Mapping[str, Any]) -> bool:
        return bool(self.server.run(run["id"])["state"]["id"] == run["state"]["id"])

    def _end(self, run: Mapping[str, Any]) -> str:
        """End the run in a state that frees its slot; a run that had not begun is rescheduled."""
        state = run["state"]["type"]
        kind = "CANCELLED" if state == "CANCELLING" else "CRASHED"
        if state == "PENDING" and not run["parameters"].get("in_place"):
            kind = "SCHEDULED"
        self.server.set_state(run["id"], kind, GONE)
        return f"run {run['name']}: {GONE}; it was {state}, now {kind}"

    def _continue(self) -> Iterator[str]:
        """Continue crashed runs that have a worktree; remove the worktrees of cancelled runs.

        The newest run with a worktree's name decides.
        """
        left = set(worktrees(self.root))
        if not left:
            return
        runs = self.server.list_runs(DEPLOYMENT)
        newest: dict[str, dict[str, Any]] = {}
        for run in runs:
            queued = run["state"]["type"] == "CANCELLED" and not run["start_time"]
            if not queued and not run["parameters"].get("in_place"):
                newest.setdefault(run_name(run["parameters"].get("name"), run["name"], run["id"]), run)
        for name in sorted(left & set(newest)):
            run = newest[name]
            if run["state"]["type"] not in ("CRASHED", "CANCELLED") or in_use(self.root, name):
                continue
            if run["state"]["type"] == "CANCELLED":
                discard(self.root, name)
                yield f"run {name} was cancelled: its worktree is removed"
                continue
            tag = next((t for t in run["tags"] if t.startswith("continues:")), f"continues:{run['id']}")
            if sum(tag in other["tags"] for other in runs) < CONTINUED:
                _start_again(self.server, run, name, tag)
                yield f"run {name} is continued from what it had finished"


def _start_again(server: Api, run: Mapping[str, Any], name: str, tag: str) -> None:
    """Start one run with the parameters of ``run`` in its worktree ``name``; a repeated call starts no second one."""
    body = {
        "parameters": {**run["parameters"], "name": name},
        "tags": [tag],
        "idempotency_key": f"continue-{run['id']}",
    }
    server.post(f"/deployments/{run['deployment_id']}/create_flow_run", body)


def _last_heartbeat(server: Api, run: str) -> str:
    """Return the id of the run's newest heartbeat event, "" if the server has none."""
    chosen = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run}"]},
        "order": "DESC",
    }
    events = server.post("/events/filter", {"filter": chosen, "limit": 1})["events"]
    return str(events[0]["id"]) if events else ""

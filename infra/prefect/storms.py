"""Event storms: keep only the newest of the waiting runs that events started with the same parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator

from infra.prefect.api import Api
from infra.prefect.settle import DEPLOYMENT

SUPERSEDED = "a later event asks for the same run"


def coalesce(server: Api) -> Iterator[str]:
    """Cancel each waiting run of an event if a later one with the same parameters waits; yield a line for each.

    A run reads its teacher when it begins, so the newest one covers all earlier events. Runs that have begun, and runs
    of a person or a schedule, are not cancelled. While no run holds the deployment's slot, the oldest is about to
    begin, so nothing is cancelled.
    """
    kept: set[str] = set()
    runs = server.list_runs(DEPLOYMENT)
    if not any(run["state"]["type"] in ("PENDING", "RUNNING") for run in runs):
        return
    waiting = [run for run in runs if run["state"]["type"] == "SCHEDULED"]
    for run in sorted(waiting, key=lambda run: str(run["created"]), reverse=True):
        if (run["created_by"] or {}).get("type") != "AUTOMATION":
            continue
        asked = json.dumps(run["parameters"], sort_keys=True)
        if asked in kept and server.run(run["id"])["state"]["type"] == "SCHEDULED":
            server.set_state(run["id"], "CANCELLED", SUPERSEDED)
            yield f"run {run['name']}: {SUPERSEDED}"
        kept.add(asked)

"""Event storms: of the runs that events asked for and that wait with the same parameters, the newest is enough."""

from __future__ import annotations

import json
from collections.abc import Iterator

from infra.prefect.api import Api
from infra.prefect.settle import DEPLOYMENT

SUPERSEDED = "a later event asks for the same run"


def coalesce(server: Api) -> Iterator[str]:
    """Cancel each waiting run that an event asked for if a later one with the same parameters waits; a line for each.

    A run looks at its teacher when it begins, so the newest one sees what all of their events announced. Runs that
    have begun, and runs that a person or a schedule asked for, are left alone. While no run holds the deployment's slot
    the oldest is about to begin, and nothing is cancelled.
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

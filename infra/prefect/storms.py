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
    have begun, and runs that a person or a schedule asked for, are left alone.
    """
    kept: set[str] = set()
    waiting = [run for run in server.begun(DEPLOYMENT) if run["state"]["type"] == "SCHEDULED"]
    for run in sorted(waiting, key=lambda run: str(run["created"]), reverse=True):
        if (run["created_by"] or {}).get("type") != "AUTOMATION":
            continue
        asked = json.dumps(run["parameters"], sort_keys=True)
        if asked in kept:
            server.set_state(run["id"], "CANCELLED", SUPERSEDED)
            yield f"run {run['name']}: {SUPERSEDED}"
        kept.add(asked)

"""``rcm distill``: run the deployment on a local Prefect and follow it until it ends."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.prefect.api import FINAL, Api, UnreachableError
from infra.prefect.display import display
from infra.prefect.pace import Pace, expect
from infra.prefect.server import Local, api, deploy, ensure_keeper, ensure_server, ensure_worker
from infra.prefect.settle import DEPLOYMENT, Settler
from rcm_core.errors import InputError, OutageError

POLL_SECONDS = 2.0
"""Seconds between polls; each poll costs the server CPU time, which a training on the same machine needs."""
CANCEL_SECONDS = 60
WAIT_SECONDS = 600
"""Seconds to wait for another process that is starting the same server and worker."""
LATE_POLLS = 2
"""Polls after the final state, because a run's last lines arrive after it."""
BUSY_POLLS = 15
OWN_NOISE = re.compile(
    r"(Beginning flow run|Finished in state|Created task run|Executing|View at|Worker '.*' submitting"
    r"|Flow run '.*' submitted|Running \d+ deployment pull|Deployment step|All deployment steps)"
)


@dataclass(frozen=True)
class Outcome:
    """Final state of a run."""

    run: str
    state: str
    message: str
    page: str


@dataclass(frozen=True)
class Started:
    """A server with a worker, and which of them this process must stop on an interrupt."""

    root: Path
    url: str
    server: bool
    worker: bool
    keeper: bool = False

    def stop(self) -> None:
        local = Local(self.root)
        if self.keeper:
            local.keeper.stop()
        if self.worker:
            local.worker.stop()
        if self.server:
            local.server.stop()


@contextmanager
def prefect_up(root: Path) -> Iterator[Started]:
    """Start server, worker, keeper and deployments where needed, and settle the runs of dead processes.

    If the block is interrupted, the processes that were started for it end.
    """
    started = Started(root, "", server=False, worker=False)
    local = Local(root)
    daemons = (local.server, local.worker, local.keeper)
    before = {daemon.name: daemon.running() is not None for daemon in daemons}
    try:
        with local.starting(WAIT_SECONDS):
            url, server = ensure_server(root)
            started = Started(root, url, server, worker=False)
            if server:
                _skip_missed(api(url))
            for line in Settler(root, api(url)).look():  # before a worker takes the next run
                print(line, flush=True)
            started = Started(root, url, server, ensure_worker(root, url))
            deploy(root, url)
            started = replace(started, keeper=ensure_keeper(root))
        yield started
    except (KeyboardInterrupt, SystemExit):
        # An interrupt may come before the assignment above, so compare with the processes that ran before.
        Started(root, started.url, *(not before[daemon.name] for daemon in daemons)).stop()
        raise


def distill(root: Path, overrides: Sequence[str], teacher: str | None) -> Outcome:
    """Run the deployment in the project's own folder and show its log; an interrupt cancels the run."""
    expectation = expect(root, overrides, teacher)
    print(expectation.sentence(), flush=True)
    with prefect_up(root) as started:
        server = api(started.url)
        parameters = {"overrides": list(overrides), "teacher": teacher, "in_place": True}
        run = server.start(DEPLOYMENT, parameters)
        page = f"{started.url.removesuffix('/api')}/runs/flow-run/{run['id']}"
        print(f"Prefect: {page}", flush=True)
        try:
            ended = follow(server, run["id"], Pace(expectation.seconds))
        except (KeyboardInterrupt, SystemExit):
            print("cancelling the run ...", file=sys.stderr, flush=True)
            cancel(server, run["id"])
            raise
        return Outcome(run["id"], ended["state"]["type"], ended["state"]["message"] or "", page)


def follow(server: Api, identity: str, pace: Pace) -> dict[str, Any]:
    """Show the run's log and progress until it ends; return the run. Tolerates a busy server for a while."""
    seen, late, patience = 0, LATE_POLLS, BUSY_POLLS
    with display(pace) as shown:
        while True:
            try:
                run = server.run(identity)
                while batch := server.logs(identity, seen):
                    seen += len(batch)
                    for entry in batch:
                        if text := _text(entry):
                            shown.line(text)
                shown.count_done(sum(s["state_type"] == "COMPLETED" for s in server.stages(identity)))
                patience = BUSY_POLLS
                late = late - 1 if run["state"]["type"] in FINAL else LATE_POLLS
                if not late:
                    return run
            except UnreachableError:
                patience -= 1
                if not patience:
                    raise
            time.sleep(POLL_SECONDS)


def cancel(server: Api, identity: str) -> None:
    """Cancel the run and wait until its processes are gone."""
    run = server.run(identity)
    if run["state"]["type"] in FINAL:
        return
    server.set_state(identity, "CANCELLING", "interrupted")
    limit = time.monotonic() + CANCEL_SECONDS
    while server.run(identity)["state"]["type"] not in FINAL and time.monotonic() < limit:
        time.sleep(POLL_SECONDS)


def complaint(message: str) -> InputError | None:
    """Return the InputError or OutageError that a state's message names, if one ended the run."""
    found = re.search(r"(Input|Outage)Error: (.*)", message, re.DOTALL)
    if found is None:
        return None
    return (InputError if found[1] == "Input" else OutageError)(found[2].strip())


def _skip_missed(server: Api) -> None:
    """Cancel the runs of a schedule or a terminal that were due while the server was off.

    Runs that an event or a command started are kept.
    """
    for run in server.list_missed(datetime.now(UTC).isoformat()):
        if run["auto_scheduled"] or run["parameters"].get("in_place"):
            server.set_state(run["id"], "CANCELLED", "due while the server was off")


def _text(entry: dict[str, Any]) -> str:
    """Return the text of a log entry without Prefect's own messages and tracebacks (the page has both)."""
    message = str(entry["message"])
    if OWN_NOISE.match(message):
        return ""
    return message.split("\nTraceback", 1)[0].rstrip() if entry["level"] >= 40 else message.rstrip()

"""Kills of all processes of a run, which continues; kills of server, worker, keeper or flow; and cancelling then.

``python -m experiments.power_cut`` cuts the power in each of the eight real stages.
"""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from projects import Toy
from workspaces import wait_for

from infra.prefect.api import UnreachableError
from infra.prefect.server import Local
from infra.prefect.settle import DEPLOYMENT
from infra.workspace import worktrees

pytestmark = [pytest.mark.system, pytest.mark.slow]

STEPS = 1000


def up(toy: Toy) -> None:
    answer = toy.rcm("up")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def begin(toy: Toy, stage: str, name: str, override: str) -> str:
    """Start a run that waits in ``stage``; return its id when it has arrived there."""
    toy.gate(stage).touch()
    ran = toy.ran().count(stage) if (toy.root / ".rcm/ran").exists() else 0
    identity = str(toy.api.start(DEPLOYMENT, {"name": name, "overrides": [override]})["id"])
    arrive(toy, stage, ran + 1)
    return identity


def arrive(toy: Toy, stage: str, times: int) -> None:
    """Wait until ``stage`` has begun ``times`` times, in all runs together."""
    wait_for(stage, lambda: (toy.root / ".rcm/ran").exists() and toy.ran().count(stage) >= times)


def runs(toy: Toy, name: str) -> list[dict[str, Any]]:
    """Return the runs with this name, oldest first."""
    found = [run for run in toy.api.list_runs(DEPLOYMENT) if run["parameters"].get("name") == name]
    return sorted(found, key=lambda run: str(run["created"]))


def states(toy: Toy, name: str) -> list[str]:
    return [run["state"]["type"] for run in runs(toy, name)]


def slots(toy: Toy) -> int:
    return int(toy.api.deployment(DEPLOYMENT)["global_concurrency_limit"]["active_slots"])


def last_checkpoint(toy: Toy) -> int:
    """Return the step of the newest complete checkpoint of train."""
    whole = toy.root.glob(".rcm/state/train/toy/step_*/step")
    return max((int(path.parent.name.removeprefix("step_")) for path in whole), default=0)


def student(steps: int) -> str:
    """Return the output of train in an uninterrupted run."""
    digest = ""
    for step in range(steps):
        digest = hashlib.sha256(f"{digest} {step}".encode()).hexdigest()
    return digest


def test_a_server_that_starts_under_load_never_finds_its_database_locked(toy: Toy) -> None:
    """A worker connects while eight clients write; each of their requests is answered."""
    (toy.root / ".rcm/failed-once").mkdir()  # disables the first failure of prompts
    stop = threading.Event()

    def write(number: int) -> int:
        written = 0
        while not stop.is_set():
            with suppress(UnreachableError):  # until it is up
                toy.api.post("/variables/", {"name": f"load_{number}_{written}", "value": 1})
                written += 1
        return written

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, number) for number in range(8)]
        try:
            up(toy)
        finally:
            stop.set()
        assert sum(writer.result() for writer in writers) > 8
    assert "locked" not in Local(toy.root).server.log.read_text()


def test_a_killed_flow_and_a_power_cut_are_continued_to_the_same_student(toy: Toy) -> None:
    """In the first stage only the flow is killed; the keeper continues it. In a training on Ray all is killed."""
    begin(toy, "teacher", "cut", f"train.iterations={STEPS}")
    toy.kill("-m prefect.engine")
    arrive(toy, "teacher", 2)
    assert states(toy, "cut") == ["CRASHED", "RUNNING"]
    toy.gate("teacher").unlink()
    # Ray may not have noted the first when all is killed; the third means that the second is noted.
    wait_for("checkpoints", lambda: last_checkpoint(toy) >= 3 * STEPS // 10)
    toy.cut_power()
    assert (worktrees(toy.root), list(toy.root.glob("runs/*"))) == (["cut"], [])
    up(toy)
    wait_for("the end", lambda: states(toy, "cut")[-1] == "COMPLETED", every=0.1)
    assert states(toy, "cut") == ["CRASHED", "CRASHED", "COMPLETED"]
    assert (slots(toy), worktrees(toy.root)) == (0, [])
    counts = {
        stage: toy.ran().count(stage) for stage in ("teacher", "prompts", "trajectories", "train", "publish")
    }
    assert counts == {"teacher": 2, "prompts": 1, "trajectories": 1, "train": 2, "publish": 1}
    logs = [entry["message"] for entry in toy.api.logs(runs(toy, "cut")[-1]["id"], 0)]
    (start,) = [line for line in logs if line.startswith("starts at step ")]
    assert int(start.rpartition(" ")[2]) >= STEPS // 10
    assert toy.run("dvc", "exp", "apply", "cut").returncode == 0
    assert (toy.root / "runs/train/out.txt").read_text() == student(STEPS)
    toy.run("git", "checkout", "-q", ".")


def test_a_run_outlives_its_server_and_is_cancelled_after_its_processes_are_gone(toy: Toy) -> None:
    """Two events arrive during the run, too: one run waits for both."""
    run = begin(toy, "teacher", "dead", "teacher.steps=49")
    toy.kill("-m prefect server start")
    wait_for("server", toy.api.healthy, every=0.1)
    assert (toy.api.run(run)["state"]["type"], slots(toy)) == ("RUNNING", 1)
    toy.api.post("/events", [updated(), updated()])
    asked = wait_for("one waits for both", lambda: of_events(toy, ["CANCELLED", "SCHEDULED"]), every=0.1)
    toy.kill("-m infra.prefect.keeper")
    toy.kill("-m prefect worker start")
    toy.kill("-m prefect.engine")
    assert toy.run("prefect", "flow-run", "cancel", run).returncode == 0
    assert (toy.api.run(run)["state"]["type"], slots(toy)) == ("CANCELLING", 1)
    toy.api.set_state(asked[-1], "CANCELLED", "")
    up(toy)
    assert (toy.api.run(run)["state"]["type"], slots(toy)) == ("CANCELLED", 0)
    assert worktrees(toy.root) == []
    assert toy.rcm("stop").stdout == "stopped: keeper, worker, server\n"
    assert toy.processes() == []


def updated() -> dict[str, Any]:
    """Return an event as the watch emits it."""
    return {
        "id": str(uuid4()),
        "event": "teacher.updated",
        "occurred": datetime.now(UTC).isoformat(),
        "resource": {"prefect.resource.id": "rcm.teacher.mine"},
        "payload": {"uri": "mini", "endpoint": ""},
    }


def of_events(toy: Toy, states: list[str]) -> list[str]:
    """Return the runs started by events, oldest first, if they have these states; else []."""
    found = [run for run in toy.api.list_runs(DEPLOYMENT) if run["parameters"].get("teacher") == "mini"]
    found.sort(key=lambda run: str(run["created"]))
    return [run["id"] for run in found] if [run["state"]["type"] for run in found] == states else []

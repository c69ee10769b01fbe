"""Everything killed at once in a run, and continued; server, worker or flow killed; events and cancelling besides."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from projects import Toy
from workspaces import PATIENCE

from infra.prefect.api import UnreachableError
from infra.prefect.server import Local
from infra.prefect.settle import DEPLOYMENT
from infra.workspace import worktrees

pytestmark = pytest.mark.system

STEPS = 1000
CONTINUE_SECONDS = 120


def until(what: str, condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, what
        time.sleep(0.2)
    return found


def up(toy: Toy) -> None:
    answer = toy.rcm("up")
    assert answer.returncode == 0, answer.stdout + answer.stderr


def begin(toy: Toy, stage: str, name: str, **parameters: Any) -> str:
    """Start a run that waits in ``stage``; its id once it is there."""
    toy.gate(stage).touch()
    before = len(toy.ran()) if (toy.root / ".rcm/ran").exists() else 0
    identity = str(toy.api.start(DEPLOYMENT, {"name": name, **parameters})["id"])
    arrived(toy, stage, before)
    return identity


def arrived(toy: Toy, stage: str, before: int) -> None:
    """Wait until ``stage`` begins, after the ``before`` stages that have run."""
    until(stage, lambda: (toy.root / ".rcm/ran").exists() and stage in toy.ran()[before:])


def states(toy: Toy, name: str) -> list[str]:
    """Of the runs that bore this name, oldest first."""
    runs = [run for run in toy.api.begun(DEPLOYMENT) if run["parameters"].get("name") == name]
    return [run["state"]["type"] for run in sorted(runs, key=lambda run: str(run["created"]))]


def slots(toy: Toy) -> int:
    return int(toy.api.deployment(DEPLOYMENT)["global_concurrency_limit"]["active_slots"])


def last_checkpoint(toy: Toy) -> int:
    """The step of the last one of train that is whole."""
    whole = toy.root.glob(".rcm/state/train/toy/step_*/step")
    return max((int(path.parent.name.removeprefix("step_")) for path in whole), default=0)


def student(steps: int) -> str:
    """What train makes in a run that nobody interrupts."""
    digest = ""
    for step in range(steps):
        digest = hashlib.sha256(f"{digest} {step}".encode()).hexdigest()
    return digest


def test_a_server_that_starts_under_load_never_finds_its_database_locked(toy: Toy) -> None:
    """A worker connects while eight clients write; each of their requests is answered."""
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


def test_after_power_cuts_the_run_is_continued_to_the_same_student(toy: Toy) -> None:
    """Cut in the first stage, in a training on Ray and in the last stage."""
    up(toy)
    begin(toy, "teacher", "cut", overrides=[f"train.iterations={STEPS}"])
    toy.cut_power()
    toy.gate("teacher").unlink()
    up(toy)
    # the first may not be noted by Ray when all is killed, the third is
    until("checkpoints", lambda: last_checkpoint(toy) >= 3 * STEPS // 10)
    toy.cut_power()
    assert (worktrees(toy.root), list(toy.root.glob("runs/*"))) == (["cut"], [])
    toy.gate("publish").touch()
    before = len(toy.ran())
    up(toy)
    arrived(toy, "publish", before)
    toy.cut_power()
    toy.gate("publish").unlink()
    up(toy)
    again = time.monotonic()
    until("the end", lambda: states(toy, "cut")[-1] == "COMPLETED")
    assert time.monotonic() - again < CONTINUE_SECONDS
    assert states(toy, "cut") == ["CRASHED"] * 3 + ["COMPLETED"]
    assert slots(toy) == 0
    assert worktrees(toy.root) == []
    logs = [entry["message"] for run in toy.api.begun(DEPLOYMENT) for entry in toy.api.logs(run["id"], 0)]
    assert any(line.startswith("starts at step ") and line != "starts at step 0" for line in logs)
    assert toy.run("dvc", "exp", "apply", "cut").returncode == 0
    assert (toy.root / "runs/train/out.txt").read_text() == student(STEPS)
    toy.run("git", "checkout", "-q", ".")


def test_server_worker_and_keeper_come_back_and_nothing_is_lost(toy: Toy) -> None:
    """Server and worker are killed in a run; two events come and become one run, run after the first."""
    if not toy.api.healthy():
        up(toy)
    known = len(toy.api.begun(DEPLOYMENT))
    run = begin(toy, "report", "long", overrides=["report.title=another"])
    for daemon in ("server", "worker"):
        toy.kill(f"-m prefect {daemon} start")
    until("server", toy.api.healthy)
    until("worker", Local(toy.root).worker.running)
    assert toy.api.run(run)["state"]["type"] == "RUNNING"
    for _ in range(2):
        emit(toy)
    until("the runs of both events", lambda: len(toy.api.begun(DEPLOYMENT)) >= known + 3)
    until(
        "one waits for both", lambda: [r["state"]["type"] for r in events(toy)] == ["CANCELLED", "SCHEDULED"]
    )
    assert toy.run("prefect", "flow-run", "cancel", run).returncode == 0
    until("cancelled", lambda: toy.api.run(run)["state"]["type"] == "CANCELLED")
    until("the worktree is gone", lambda: "long" not in worktrees(toy.root))
    toy.gate("report").unlink()
    until("both are served", lambda: [r["state"]["type"] for r in events(toy)] == ["CANCELLED", "COMPLETED"])
    assert slots(toy) == 0


def emit(toy: Toy) -> None:
    payload = '{"uri": "mini", "endpoint": ""}'
    command = ["event", "emit", "teacher.updated", "--resource-id", "rcm.teacher.mine", "--payload", payload]
    assert toy.run("prefect", *command).returncode == 0


def events(toy: Toy) -> list[dict[str, Any]]:
    """Runs that events asked for, oldest first."""
    runs = [run for run in toy.api.begun(DEPLOYMENT) if run["parameters"].get("teacher") == "mini"]
    return sorted(runs, key=lambda run: str(run["created"]))


def test_a_dead_run_is_cancelled_as_cancelled_and_a_killed_flow_is_continued(toy: Toy) -> None:
    if not toy.api.healthy():
        up(toy)
    begin(toy, "select", "killed", overrides=["select.samples=60"])
    toy.kill("-m prefect.engine")
    toy.gate("select").unlink()
    until("the end", lambda: states(toy, "killed") == ["CRASHED", "COMPLETED"])
    run = begin(toy, "select", "dead", overrides=["select.samples=61"])
    toy.kill("-m infra.prefect.keeper")
    toy.kill("-m prefect worker start")
    toy.kill("-m prefect.engine")
    assert toy.run("prefect", "flow-run", "cancel", run).returncode == 0
    assert (toy.api.run(run)["state"]["type"], slots(toy)) == ("CANCELLING", 1)
    up(toy)
    assert (toy.api.run(run)["state"]["type"], slots(toy)) == ("CANCELLED", 0)
    assert "dead" not in worktrees(toy.root)
    toy.gate("select").unlink()
    assert toy.rcm("stop").stdout == "stopped: keeper, worker, server\n"
    assert toy.processes() == []

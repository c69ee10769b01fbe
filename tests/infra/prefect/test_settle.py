"""Dead runs and how the keeper settles them, on a real Prefect server; the keeper itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from projects import REPOSITORY as ROOT
from workspaces import wait_for

from infra.commands.doctor import examine
from infra.prefect.api import Api
from infra.prefect.server import POOL, Local
from infra.prefect.settle import CONTINUED, DEPLOYMENT, SILENT_SECONDS, Settler
from infra.state import hold

pytestmark = pytest.mark.system

ELSEWHERE = "worker-of-another-machine"


@dataclass
class Machine:
    """A project with a server and a deployment, but no worker, so that the test controls each run."""

    root: Path
    api: Api
    deployment: str
    now: float = 0.0
    settler: Settler = field(init=False)

    def __post_init__(self) -> None:
        self.settler = Settler(self.root, self.api, lambda: self.now)

    def look(self, after: float = 0.0) -> list[str]:
        """Return the lines of the settler ``after`` seconds."""
        self.now += after
        return self.settler.look()

    def taken(self, worker: str, **parameters: Any) -> str:
        """Create a run that ``worker`` has taken: PENDING, with the deployment's slot."""
        body = {"parameters": parameters, "labels": {"prefect.worker.name": worker}}
        run = str(self.api.post(f"/deployments/{self.deployment}/create_flow_run", body)["id"])
        self.api.set_state(run, "PENDING", "")
        return run

    def list_runs(self, worker: str, **parameters: Any) -> str:
        run = self.taken(worker, **parameters)
        self.api.set_state(run, "RUNNING", "")
        return run

    def beat(self, run: str) -> None:
        """Send a heartbeat of ``run`` as its process does; return when the server has stored it."""
        identity = str(uuid4())
        event = {
            "id": identity,
            "event": "prefect.flow-run.heartbeat",
            "occurred": datetime.now(UTC).isoformat(),
            "resource": {"prefect.resource.id": f"prefect.flow-run.{run}"},
        }
        self.api.post("/events", [event])
        stored = {"filter": {"id": {"id": [identity]}}}
        wait_for("heartbeat", lambda: self.api.post("/events/filter", stored)["events"], every=0.1)

    def state(self, run: str) -> str:
        return str(self.api.run(run)["state"]["type"])

    def slots(self) -> int:
        return int(self.api.deployment(DEPLOYMENT)["global_concurrency_limit"]["active_slots"])


@pytest.fixture(scope="module")
def deployed(server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Api, str]:
    """Project, server and the id of the deployment, which allows one run at a time."""
    root, api = tmp_path_factory.mktemp("project"), Api(server)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    flow, name = DEPLOYMENT.split("/")
    api.post("/work_pools/", {"name": POOL, "type": "process"})
    made = {
        "name": name,
        "flow_id": api.post("/flows/", {"name": flow})["id"],
        "work_pool_name": POOL,
        "concurrency_limit": 1,
        "concurrency_options": {"collision_strategy": "ENQUEUE"},
    }
    return root, api, str(api.post("/deployments/", made)["id"])


@pytest.fixture
def machine(deployed: tuple[Path, Api, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine whose slot is free before and after the test."""
    monkeypatch.delenv("RCM_HOME", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    made = Machine(*deployed)
    assert made.slots() == 0
    yield made
    for run in made.api.list_unfinished(POOL):
        made.api.set_state(run["id"], "CRASHED", "")


def test_a_run_on_another_machine_is_dead_when_its_heartbeat_is_gone(machine: Machine) -> None:
    run = machine.list_runs(ELSEWHERE)
    machine.beat(run)
    assert machine.look() == []
    assert machine.look(SILENT_SECONDS) == []
    machine.beat(run)
    assert machine.look(1) == []  # alive again
    assert machine.look(SILENT_SECONDS) == []
    assert (machine.state(run), machine.slots()) == ("RUNNING", 1)
    (line,) = machine.look(1)
    assert re.search(r"it was RUNNING, now CRASHED$", line)
    assert (machine.state(run), machine.slots()) == ("CRASHED", 0)


def test_a_run_that_was_being_cancelled_there_is_cancelled(machine: Machine) -> None:
    run = machine.list_runs(ELSEWHERE)
    machine.beat(run)
    machine.api.set_state(run, "CANCELLING", "")
    assert machine.look() == []
    assert len(machine.look(SILENT_SECONDS + 1)) == 1
    assert (machine.state(run), machine.slots()) == ("CANCELLED", 0)


def test_a_run_that_sends_no_heartbeats_is_not_judged_by_them(machine: Machine) -> None:
    run = machine.list_runs(ELSEWHERE)
    assert machine.look() + machine.look(100 * SILENT_SECONDS) == []
    assert (machine.state(run), machine.slots()) == ("RUNNING", 1)


def test_a_silence_of_the_server_is_no_silence_of_the_run(machine: Machine) -> None:
    """Heartbeats cannot arrive while the server is down, so the time restarts at zero."""
    run = machine.list_runs(ELSEWHERE)
    machine.beat(run)
    assert machine.look() == []
    there, machine.settler.server = machine.settler.server, Api("http://127.0.0.1:1/api")
    with pytest.raises(Exception, match="does not answer"):
        machine.look(1)
    machine.settler.server = there
    assert machine.look(SILENT_SECONDS) == []
    assert machine.state(run) == "RUNNING"


def test_a_run_that_its_worker_took_and_never_began_is_scheduled_again(machine: Machine) -> None:
    """It is immediate if our own worker is dead, and also follows if the worker of another machine is offline."""
    for worker, silence in ((Local(machine.root).worker_name, 0.0), (ELSEWHERE, SILENT_SECONDS + 1)):
        run = machine.taken(worker)
        assert machine.slots() == 1
        if silence:
            heart = f"/work_pools/{POOL}/workers/heartbeat"
            machine.api.post(heart, {"name": "another-one", "heartbeat_interval_seconds": 30})
            assert machine.look() == []
        (line,) = machine.look(silence)
        assert line.endswith("it was PENDING, now SCHEDULED")
        assert (machine.state(run), machine.slots()) == ("SCHEDULED", 0)
        offered = machine.api.post(f"/work_pools/{POOL}/get_scheduled_flow_runs", {})
        assert run in [response["flow_run"]["id"] for response in offered]


def test_a_worker_that_is_online_may_take_its_time_to_begin(machine: Machine) -> None:
    heart = f"/work_pools/{POOL}/workers/heartbeat"
    machine.api.post(heart, {"name": ELSEWHERE, "heartbeat_interval_seconds": 30})
    run = machine.taken(ELSEWHERE)
    assert machine.look() + machine.look(10 * SILENT_SECONDS) == []
    assert machine.state(run) == "PENDING"


def test_a_run_is_continued_ten_times_and_then_stays_crashed(machine: Machine) -> None:
    """Each time under its name and parameters, by one run however often it is asked for; while nobody holds its
    worktree.
    """
    worktree = machine.root / ".rcm/worktrees/nightly"
    worktree.mkdir(parents=True)
    parameters = {"name": "nightly", "overrides": ["train.batch=4"]}
    run = machine.list_runs("none", **parameters)
    for _ in range(CONTINUED):
        assert machine.look() == []
        machine.api.set_state(run, "CRASHED", "")
        with hold(worktree):
            assert machine.look() == []
        assert machine.look() == ["run nightly is continued from what it had finished"]
        assert machine.look() == []
        run, before = machine.api.list_runs(DEPLOYMENT)[0]["id"], run
        assert run != before
        assert machine.api.run(run)["parameters"] == parameters
        for state in ("PENDING", "RUNNING"):
            machine.api.set_state(run, state, "")
    machine.api.set_state(run, "CRASHED", "")
    assert machine.look() + machine.look() == []
    assert worktree.is_dir()
    # a person restarts it and then cancels it: nothing remains
    run = machine.list_runs("none", **parameters)
    machine.api.set_state(run, "CANCELLED", "")
    assert machine.look() == ["run nightly was cancelled: its worktree is removed"]
    assert not worktree.exists()


def test_a_failed_run_and_one_at_a_terminal_are_not_continued(machine: Machine) -> None:
    (machine.root / ".rcm/worktrees/failed").mkdir(parents=True)
    machine.api.set_state(machine.list_runs("none", name="failed"), "FAILED", "")
    machine.api.set_state(machine.list_runs("none", name="failed", in_place=True), "CRASHED", "")
    assert machine.look() == []


def ensure_keeper(root: Path) -> str:
    """Ensure the keeper as `rcm up` does, in a separate process; return whether it started one."""
    code = "from infra.prefect.server import ensure_keeper; from pathlib import Path; print(ensure_keeper(Path.cwd()))"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.PIPE,
        text=True, check=True,
    )  # fmt: skip
    return answer.stdout.strip()


def test_a_killed_keeper_is_started_again_and_doctor_says_since_when(machine: Machine) -> None:
    def row() -> tuple[str, str]:
        return next((f.found, f.remedy) for f in examine(machine.root) if f.subject == "keeper")

    keeper = Local(machine.root).keeper
    assert row() == ("not running", "rcm up")
    with Local(machine.root).starting(0):  # the keeper does nothing while another process starts daemons
        assert (ensure_keeper(machine.root), ensure_keeper(machine.root)) == ("True", "False")
        first = keeper.running()
        assert first is not None
        since = datetime.fromtimestamp(first.create_time()).strftime("%Y-%m-%d %H:%M:%S")
        assert row() == (f"running since {since} (process {first.pid})", "")
        first.kill()
        psutil.wait_procs([first])
        assert row() == ("not running", "rcm up")
        assert ensure_keeper(machine.root) == "True"
        second = keeper.running()
        assert second is not None
        assert second.pid != first.pid
        assert keeper.stop()


def test_runs_of_a_pool_from_our_template_send_the_heartbeats_that_they_are_judged_by(tmp_path: Path) -> None:
    name = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
    template = json.loads((ROOT / "infra/prefect/process-pool.json").read_text())
    given = template["variables"]["properties"]["env"]["default"]
    assert given[name] == Local(tmp_path).environment("")[name]
    assert 2 * int(given[name]) < SILENT_SECONDS

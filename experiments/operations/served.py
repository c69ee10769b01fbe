"""A real server, worker, keeper, Ray, DVC and S3 (moto) under faults: S3 faults, and a storm of events."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.prefect.api import FINAL
from infra.prefect.settle import DEPLOYMENT
from infra.workspace import worktrees
from rcm_core.units import MIB
from tests.support.projects import Toy, free_port, make_toy

WATCH = "watch-teacher/watch-teacher"
STORM = 20
EMIT = """
import sys
from prefect.events import emit_event
payload = {"uri": "mini", "endpoint": ""}
for number in range(int(sys.argv[1])):
    emit_event("teacher.updated", {"prefect.resource.id": "rcm.teacher.mine"}, payload=payload)
"""


@dataclass(frozen=True)
class Served(Toy):
    """A project whose commands have ``extra`` in their environment."""

    extra: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        return super().env | self.extra


@contextmanager
def restart(toy: Toy) -> Iterator[Toy]:
    """Start server, worker and keeper of the project; yield the project."""
    answer = toy.rcm("up")
    if answer.returncode:
        raise SystemExit(answer.stdout + answer.stderr)
    try:
        yield toy
    finally:
        toy.rcm("stop")


def until(what: str, condition: Callable[[], Any], seconds: float = 3600, pause: float = 0.5) -> Any:
    """Return the first true value of ``condition``, tried every ``pause`` seconds; SystemExit after ``seconds``."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > limit:
            raise SystemExit(f"not within {seconds} seconds: {what}")
        time.sleep(pause)
    return found


def size(path: Path) -> float:
    """Return the MiB on disk below ``path``."""
    return round(sum(p.lstat().st_blocks * 512 for p in path.rglob("*") if not p.is_dir()) / MIB, 1)


def resources(toy: Toy) -> dict[str, float]:
    """Return memory of server, worker and keeper and disk usage in MiB, and the numbers of worktrees and processes."""
    found: dict[str, float] = {".rcm": size(toy.root / ".rcm"), "/tmp/ray": size(Path("/tmp/ray"))}
    for process, command in toy._processes():
        for name in ("server", "worker", "keeper"):
            if f"prefect {name} start" in command or f"prefect.{name}" in command:
                found[f"{name} memory"] = round(process.memory_info().rss / MIB, 1)
    return found | {"worktrees": len(worktrees(toy.root)), "processes": len(toy.processes())}


def runs(toy: Toy) -> list[dict[str, Any]]:
    """Return the deployment's runs, except those of its schedule, oldest first."""
    found = [run for run in toy.api.list_runs(DEPLOYMENT) if not run["auto_scheduled"]]
    return sorted(found, key=lambda run: str(run["created"]))


def wait_for_all(toy: Toy) -> list[str]:
    """Wait until all runs have ended; return their states."""
    until("all runs end", lambda: all(run["state"]["type"] in FINAL for run in runs(toy)))
    return [run["state"]["type"] for run in runs(toy)]


def list_remains(toy: Toy) -> dict[str, Any]:
    """Return processes, worktrees and other remains after every run has ended."""
    until(
        "processes of runs end",
        lambda: not any("prefect.engine" in p or "ray" in p for p in toy.processes()),
        120,
    )
    hidden = [p for p in (toy.root / ".rcm").rglob(".*") if p.name.startswith(".step_")]
    return {
        "slots": toy.api.deployment(DEPLOYMENT)["global_concurrency_limit"]["active_slots"],
        "worktrees": worktrees(toy.root),
        "owners_of_locks": [p.name for p in (toy.root / ".rcm").rglob("*.owner")],
        "temporary_files": [p.name for p in hidden],
        "live_state": sorted(p.name for p in toy.root.glob(".rcm/state/*/*") if p.is_dir()),
    }


def emit(toy: Toy, number: int) -> None:
    """Emit ``number`` events within a second."""
    answer = toy.run("python", "-c", EMIT, str(number))
    if answer.returncode:
        raise SystemExit(answer.stderr)


def storm() -> dict[str, Any]:
    """Test twenty events in a row, two in a second, one during a run, and a teacher that becomes A, B, A."""
    with tempfile.TemporaryDirectory(prefix="rcm-storm-") as name:
        toy = Toy(make_toy(Path(name) / "project"), free_port(), uuid.uuid4().hex)
        with restart(toy):
            before = resources(toy)
            emit(toy, STORM)
            until("all events are noticed", lambda: len(runs(toy)) >= STORM)
            states = wait_for_all(toy)
            found: dict[str, Any] = {
                "events": STORM,
                "before": before,
                "after": resources(toy),
                **count_states(states),
            }
            known = len(runs(toy))
            toy.gate("report").touch()
            toy.api.start(DEPLOYMENT, {"overrides": ["report.title=another"]})
            until("report", lambda: toy.ran()[-1] == "report")
            emit(toy, 1)
            until("the event is noticed", lambda: len(runs(toy)) == known + 2)
            waited = runs(toy)[-1]["state"]["type"]
            toy.gate("report").unlink()
            found["event_in_a_run"] = {"meanwhile": waited, "states": wait_for_all(toy)[known:]}
            found["a_b_a"] = returning(toy, Path(name) / "teacher")
            found["left"] = list_remains(toy)
    return found | {"processes_after_stop": len(toy.processes())}


def count_states(states: list[str]) -> dict[str, int]:
    """Return the number of runs by final state."""
    return {f"runs {state.lower()}": states.count(state) for state in sorted(set(states))}


def returning(toy: Toy, teacher: Path) -> list[str]:
    """Give the teacher the contents A, A, B, A and watch it after each; return the states of the resulting runs."""
    teacher.mkdir()
    (teacher / "model_index.json").write_text("{}")
    known = len(runs(toy))
    for content, more in (("a", 1), ("a", 1), ("b", 2), ("a", 3)):
        (teacher / "weights").write_text(content)
        while wait_for_look(toy, teacher) == "CANCELLED":  # a scheduled watch had not ended
            pass
        wait_for_runs(toy, known + more)
        wait_for_all(toy)
    return wait_for_all(toy)[known:]


def wait_for_runs(toy: Toy, number: int) -> None:
    until(f"{number} runs", lambda: len(runs(toy)) >= number)


def wait_for_look(toy: Toy, teacher: Path) -> str:
    """Watch ``teacher`` once; return the run's final state."""
    look = toy.api.start(WATCH, {"teacher": str(teacher)})["id"]
    until("the look ends", lambda: toy.api.run(look)["state"]["type"] in FINAL)
    return str(toy.api.run(look)["state"]["type"])


SERVED = {"storm": storm}

"""The deployment on a real Prefect server and worker: schedule, event, retry, skipping, experiments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from workspaces import wait_for

from infra.prefect.api import FINAL
from infra.prefect.local import DEPLOYMENT, complaint

pytestmark = [pytest.mark.system, pytest.mark.slow]

ORDER = ["teacher", "prompts", "trajectories", "train", "select", "evaluate", "report", "publish"]
WATCH = "watch-teacher/watch-teacher"


@pytest.fixture(scope="module")
def served(toy: Any) -> Iterator[Any]:
    """The toy project with running server and worker and all deployments."""
    answer = toy.rcm("up")
    assert answer.returncode == 0, answer.stderr
    assert f"http://127.0.0.1:{toy.port}" in answer.stdout
    return toy


def finished(toy: Any, identity: str) -> dict[str, Any]:
    """Wait for the end of the run and return it."""

    def ended() -> dict[str, Any] | None:
        run = toy.api.run(identity)
        return run if run["state"]["type"] in FINAL else None

    found: dict[str, Any] = wait_for(f"end of run {identity}", ended, every=0.3)
    return found


def runs(toy: Any) -> list[dict[str, Any]]:
    """Return the runs of rcm-distill except those of its schedule, newest first."""
    query = {
        "deployments": {"id": {"any_": [toy.api.deployment(DEPLOYMENT)["id"]]}},
        "sort": "START_TIME_DESC",
    }
    return [r for r in toy.api.post("/flow_runs/filter", query) if not r["auto_scheduled"]]


def states(toy: Any, identity: str) -> dict[str, str]:
    return {stage["name"]: stage["state_name"] for stage in toy.api.stages(identity)}


def test_schedule_trigger_and_limit_are_deployed(served: Any) -> None:
    deployment = served.api.deployment(DEPLOYMENT)
    assert [s["schedule"]["cron"] for s in deployment["schedules"] if s["active"]] == ["0 3 * * 1"]
    assert deployment["global_concurrency_limit"]["limit"] == 1
    automations = served.api.post("/automations/filter", {})
    expected = [a["trigger"]["expect"] for a in automations if a["enabled"]]
    assert ["teacher.updated"] in expected
    assert served.api.deployment(WATCH)["schedules"][0]["active"]
    # the machine's /tmp/runner_storage may belong to another user (flows.prefect_plugin)
    assert list((served.root / ".rcm/prefect/temporary/runner_storage").iterdir())


def test_the_literal_command_runs_the_line_and_ends_as_an_experiment(served: Any) -> None:
    answer = served.run("prefect", "deployment", "run", "rcm-distill", "--watch", "-p", "name=first")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    run = runs(served)[0]
    assert run["parameters"]["name"] == "first"
    assert states(served, run["id"]) == dict.fromkeys(ORDER, "Completed")
    # prompts failed the first time and was tried again; train was on Ray
    counts = {stage["name"]: stage["run_count"] for stage in served.api.stages(run["id"])}
    assert counts == dict.fromkeys(ORDER, 1) | {"prompts": 2}
    assert served.ran() == ["teacher", "prompts", *ORDER[1:]]
    logs = [entry["message"] for offset in (0, 200) for entry in served.api.logs(run["id"], offset)]
    assert "starts at step 0" in logs
    assert "working on publish" in logs
    experiments = served.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert "first" in experiments
    assert (served.root / ".rcm/reports/first.html").read_text() == "<html>\n"
    assert not (served.root / ".rcm/worktrees/first").exists()
    assert not (served.root / "runs").exists()


def test_the_page_of_a_run_has_numbers_progress_and_report(served: Any) -> None:
    query = {"flow_runs": {"id": {"any_": [runs(served)[0]["id"]]}}}
    artifacts = {a["key"]: a for a in served.api.post("/artifacts/filter", query)}
    assert "| student_1 | 2 (1.5 - 2.5) |" in artifacts["metrics"]["data"]
    assert float(artifacts["progress"]["data"]) == 100.0
    assert "first.html" in artifacts["report"]["data"]


def test_a_second_identical_run_computes_nothing(served: Any) -> None:
    before = served.ran()
    run = finished(served, served.api.start(DEPLOYMENT, {"name": "second"})["id"])
    assert run["state"]["type"] == "COMPLETED"
    assert states(served, run["id"]) == dict.fromkeys(ORDER, "Skipped")
    assert served.ran() == before


def watched(toy: Any, teacher: str) -> None:
    """Watch ``teacher``; retry if the run is cancelled because a scheduled watch is still running."""
    while (
        state := finished(toy, toy.api.start(WATCH, {"teacher": teacher})["id"])["state"]["type"]
    ) == "CANCELLED":
        pass
    assert state == "COMPLETED"


def test_a_new_teacher_starts_a_run_once(served: Any, tmp_path: Any) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "weights").write_text("one")
    known = {run["id"] for run in runs(served)}
    before = served.ran()
    watched(served, str(tmp_path))
    new = wait_for("run", lambda: [run for run in runs(served) if run["id"] not in known], every=0.3)
    run = finished(served, new[0]["id"])
    assert run["state"]["type"] == "COMPLETED"
    assert run["parameters"]["teacher"] == str(tmp_path)
    # the toy's teacher has the same output, so no later stage runs
    assert served.ran() == [*before, "teacher"]
    assert states(served, run["id"]) == dict.fromkeys(ORDER, "Skipped") | {"teacher": "Completed"}
    watched(served, str(tmp_path))
    assert len(runs(served)) == len(known) + 1


def test_bad_input_fails_at_once_with_its_sentence(served: Any) -> None:
    run = finished(served, served.api.start(DEPLOYMENT, {"overrides": ["method=smc"], "name": "bad"})["id"])
    assert run["state"]["type"] == "FAILED"
    sentence = str(complaint(run["state"]["message"]))
    assert sentence.startswith("unknown method 'smc' (did you mean 'scm'?)")
    assert served.api.stages(run["id"]) == []


def test_a_stage_s_bad_input_is_not_tried_again(served: Any) -> None:
    before = served.ran()
    parameters = {"overrides": ["publish.name=refused"], "name": "refused"}
    run = finished(served, served.api.start(DEPLOYMENT, parameters)["id"])
    assert run["state"]["type"] == "FAILED"
    assert str(complaint(run["state"]["message"])) == "the name is refused; choose another"
    stages = {stage["name"]: stage for stage in served.api.stages(run["id"])}
    assert (stages["publish"]["state_name"], stages["publish"]["run_count"]) == ("Failed", 1)
    # results of earlier runs are not computed again
    assert {s["state_name"] for name, s in stages.items() if name != "publish"} == {"Skipped"}
    assert served.ran() == [*before, "publish"]
    assert (served.root / ".rcm/worktrees/refused").is_dir()

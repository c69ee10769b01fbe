"""S3 faults with a real server, worker, Ray and DVC: eight small stages through a proxy that injects faults."""

from __future__ import annotations

import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3

from experiments.operations.served import Served, list_remains, restart, until
from experiments.operations.tiny import TINY
from infra.prefect.api import FINAL
from infra.prefect.settle import DEPLOYMENT
from rcm_core.storage.run_folder import RunFolder
from tests.support.faulty_proxy import Fault, Proxy, faulty_proxy
from tests.support.object_store import BUCKET, CREDENTIALS, object_store
from tests.support.projects import commit, copy_project, free_port

PLACES = {
    "teacher": ("GET", ".safetensors"),
    "trajectories": ("PUT", "shard_"),
    "train": ("PUT", "step_"),
    "publish": ("PUT", "/students/"),
}
"""Stages that use S3, and the request of each that a fault affects."""
OUTAGES: Mapping[str, int | str] = {"teacher": 503, "trajectories": "reset", "train": 503, "publish": "reset"}
PASSING = [
    Fault("short", "GET", ".safetensors"), Fault("cut", "GET", ".safetensors"), Fault("delay", "GET", ".safetensors"),
    Fault(503, "PUT", "shard_", times=2), Fault("reset", "PUT", "step_"), Fault("delay", "PUT", "transformer/"),
]  # fmt: skip


def faults() -> dict[str, Any]:
    """Do a run with an outage in each stage, and one that is refused in each stage and restarted."""
    with (
        tempfile.TemporaryDirectory(prefix="rcm-faults-") as name,
        object_store() as endpoint,
        faulty_proxy(endpoint) as proxy,
    ):
        extra = CREDENTIALS | {
            "AWS_ENDPOINT_URL": proxy.url, "RCM_CHECKPOINTS": f"s3://{BUCKET}/checkpoints",
            "RCM_CACHE": str(Path(name) / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        copy_project(Path(name) / "project")
        commit(Path(name) / "project")
        project = Served(Path(name) / "project", free_port(), uuid.uuid4().hex, extra)
        store_teacher(project, endpoint)
        with restart(project):
            found: dict[str, Any] = {"outages": outages(project, proxy)}
            found["refusals"] = refusals(project, proxy, endpoint)
            found["left"] = list_remains(project) | {"temporary_objects": temporary(endpoint)}
    return found


def store_teacher(project: Served, endpoint: str) -> None:
    """Train the tiny teacher and put it on S3."""
    for command in (["infra.params", *TINY], ["infra.launch", "teacher"]):
        answer = project.run("env", "RCM_EXECUTOR=local", sys.executable, "-m", *command)
        if answer.returncode:
            raise SystemExit(answer.stdout + answer.stderr)
    pipeline = RunFolder.of(project.root).teacher_pipeline
    client = s3(endpoint)
    for path in (p for p in pipeline.rglob("*") if p.is_file()):
        client.upload_file(str(path), BUCKET, f"teacher/{path.relative_to(pipeline)}")
    project.run("git", "checkout", "-q", ".")


def s3(endpoint: str) -> Any:
    """Return a client that bypasses the proxy."""
    return boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1",
        aws_access_key_id="testing", aws_secret_access_key="testing",
    )  # fmt: skip


def start(project: Served, proxy: Proxy, name: str) -> str:
    """Start a run with teacher, shards and student on S3; return its id."""
    overrides = [
        *TINY, f"trajectories.target=s3://{BUCKET}/{name}/shards", f"trajectories.endpoint={proxy.url}",
        f"publish.target=s3://{BUCKET}/{name}/students", f"publish.endpoint={proxy.url}",
    ]  # fmt: skip
    parameters = {
        "overrides": overrides,
        "name": name,
        "teacher": f"s3://{BUCKET}/teacher",
        "endpoint": proxy.url,
    }
    return str(project.api.start(DEPLOYMENT, parameters)["id"])


def stage_of(project: Served, run: str, stage: str) -> dict[str, Any]:
    """Return the task run of ``stage``; empty before it begins."""
    return next((s for s in project.api.stages(run) if s["name"] == stage), {})


def waits(project: Served, run: str, stage: str) -> bool:
    """Return whether ``stage`` waits for its next attempt; SystemExit if the run has ended."""
    state = project.api.run(run)["state"]
    if state["type"] in FINAL:
        raise SystemExit(f"the run ended as {state['name']} before {stage} waited: {state['message']}")
    return bool(stage_of(project, run, stage).get("state_name") == "AwaitingRetry")


def outages(project: Served, proxy: Proxy) -> dict[str, Any]:
    """Keep S3 down in each stage until Prefect waits for the next attempt, then let it answer."""
    proxy.faults[:] = [*PASSING]
    run = start(project, proxy, "outages")
    found: dict[str, Any] = {}
    for stage, (method, path) in PLACES.items():
        proxy.faults.append(Fault(OUTAGES[stage], method, path, times=-1, after=1))
        until(f"{stage} waits", lambda stage=stage: waits(project, run, stage))
        message = stage_of(project, run, stage)["state"]["message"]
        proxy.faults.pop()
        found[stage] = {"fault": f"{OUTAGES[stage]} {method}", "waits": message}
    until("the run ends", lambda: project.api.run(run)["state"]["type"] in FINAL)
    for stage in PLACES:
        found[stage]["attempts"] = stage_of(project, run, stage)["run_count"]
    return found | {"run": project.api.run(run)["state"]["type"], "faults_that_passed": len(proxy.done)}


def refusals(project: Served, proxy: Proxy, endpoint: str) -> dict[str, Any]:
    """Let S3 answer 403 in each stage; restart the run under its name after each."""
    found: dict[str, Any] = {}
    for stage, (method, path) in PLACES.items():
        proxy.faults[:] = [Fault(403, method, path, times=-1)]
        run = start(project, proxy, "refusals")
        until("the run ends", lambda run=run: project.api.run(run)["state"]["type"] in FINAL)
        state = project.api.run(run)["state"]
        found[stage] = {"run": state["type"], "says": state["message"], "card": card(endpoint, "refusals")}
        found[stage]["attempts"] = stage_of(project, run, stage).get("run_count")
    proxy.faults.clear()
    run = start(project, proxy, "refusals")
    until("the run ends", lambda: project.api.run(run)["state"]["type"] in FINAL)
    return found | {
        "started_again": project.api.run(run)["state"]["type"],
        "card": card(endpoint, "refusals"),
    }


def keys(endpoint: str, prefix: str) -> list[str]:
    """Return the names of the objects below ``prefix``."""
    listed = s3(endpoint).list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return [entry["Key"] for entry in listed]


def card(endpoint: str, name: str) -> bool:
    """Return whether the published version contains the model card, which is written last."""
    return any(key.endswith("README.md") for key in keys(endpoint, f"{name}/students"))


def temporary(endpoint: str) -> list[str]:
    """Return the objects of checkpoints that still exist after the trainings."""
    return keys(endpoint, "checkpoints/")


S3 = {"s3_faults": faults}

"""Client for the parts of Prefect's REST API that we use (only flows imports the package itself)."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any
from uuid import uuid4

from rcm_core.errors import InputError

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
TOO_BUSY = 503
BUSY_TRIES = 60
BUSY_SECONDS = 0.5


class UnreachableError(InputError):
    """The server does not answer at the moment."""


class Api:
    """A Prefect server at ``url`` (``http://host:port/api``)."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def get(self, path: str) -> Any:
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any) -> Any:
        return self._ask("POST", path, body)

    def healthy(self) -> bool:
        """Return whether a Prefect server answers; any other server there counts as none."""
        try:
            return bool(self.get("/health") is True)
        except (ValueError, InputError):
            return False

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.get(f"/deployments/name/{name}"))

    def start(self, deployment: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Start a run of the deployment ``flow/name``; a repeated request starts no second run."""
        identity = self.deployment(deployment)["id"]
        body = {"parameters": parameters, "idempotency_key": str(uuid4())}
        return dict(self.post(f"/deployments/{identity}/create_flow_run", body))

    def run(self, identity: str) -> dict[str, Any]:
        return dict(self.get(f"/flow_runs/{identity}"))

    def logs(self, identity: str, offset: int) -> list[dict[str, Any]]:
        """Return at most 200 log lines of a run, from number ``offset``, oldest first."""
        query = {
            "logs": {"flow_run_id": {"any_": [identity]}},
            "sort": "TIMESTAMP_ASC",
            "offset": offset,
            "limit": 200,
        }
        return list(self.post("/logs/filter", query))

    def stages(self, identity: str) -> list[dict[str, Any]]:
        """Return the run's task runs."""
        query = {"flow_runs": {"id": {"any_": [identity]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return list(self.post("/task_runs/filter", query))

    def list_unfinished(self, pool: str) -> list[dict[str, Any]]:
        """Return the unfinished runs that workers of ``pool`` have taken; each holds a concurrency slot."""
        query = {
            "work_pools": {"name": {"any_": [pool]}},
            "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING"]}}},
        }
        return list(self.post("/flow_runs/filter", query))

    def list_runs(self, deployment: str) -> list[dict[str, Any]]:
        """Return the newest 200 runs of the deployment ``flow/name``, newest first, in any state; [] without one."""
        flow, name = deployment.split("/")
        query = {
            "flows": {"name": {"any_": [flow]}},
            "deployments": {"name": {"any_": [name]}},
            "sort": "START_TIME_DESC",
            "limit": 200,
        }
        return list(self.post("/flow_runs/filter", query))

    def list_missed(self, before: str) -> list[dict[str, Any]]:
        """Return the scheduled runs that were due before ``before`` (ISO time)."""
        query = {
            "flow_runs": {
                "state": {"type": {"any_": ["SCHEDULED"]}},
                "expected_start_time": {"before_": before},
            }
        }
        return list(self.post("/flow_runs/filter", query))

    def set_state(self, identity: str, kind: str, message: str) -> None:
        state = {"type": kind, "name": kind.title(), "message": message}
        self.post(f"/flow_runs/{identity}/set_state", {"state": state})

    def online_workers(self, pool: str) -> list[dict[str, Any]]:
        """Return the online workers of a pool; empty if the pool does not exist."""
        if not self.has_pool(pool):
            return []
        workers = self.post(f"/work_pools/{pool}/workers/filter", {})
        return [w for w in workers if w["status"] == "ONLINE"]

    def has_pool(self, pool: str) -> bool:
        return bool(self.post("/work_pools/filter", {"work_pools": {"name": {"any_": [pool]}}}))

    def _ask(self, verb: str, path: str, body: Any) -> Any:
        """Return the answer; retry for a while if the server is too busy (SQLite has one writer)."""
        for _ in range(BUSY_TRIES):
            status, answer = self._ask_once(verb, path, body)
            if status != TOO_BUSY:
                return answer
            time.sleep(BUSY_SECONDS)
        raise UnreachableError(f"the Prefect server at {self.url} is too busy to answer {verb} {path}")

    def _ask_once(self, verb: str, path: str, body: Any) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, self._headers, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:300]
            if error.code == TOO_BUSY:
                return TOO_BUSY, None
            raise InputError(f"{verb} {self.url}{path}: status {error.code} ({said})") from error
        except OSError as error:
            raise UnreachableError(f"the Prefect server at {self.url} does not answer ({error})") from error

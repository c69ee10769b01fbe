"""The work pools on a real Prefect server, made and deployed to by the page's commands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from manifests import ROOT
from projects import free_port

from infra.prefect.processes import end_tree
from infra.prefect.server import Local, api

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that has nothing."""
    home, port = tmp_path_factory.mktemp("pools"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = Local(home).environment(url) | {"PREFECT_HOME": str(home)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=log) as process,
    ):
        try:
            while not api(url).healthy():
                assert process.poll() is None, (home / "log").read_text()
                time.sleep(0.2)
            yield url
        finally:
            if process.poll() is None:
                end_tree(psutil.Process(process.pid))


def prefect(server: str, home: Path, *arguments: str) -> str:
    """What ``prefect`` says; AssertionError if it fails."""
    command = [sys.executable, "-m", "prefect", *arguments]
    env = Local(home).environment(server)
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


@pytest.mark.parametrize(("pool", "kind"), [("rcm-pool", "process"), ("rcm-kubernetes", "kubernetes")])
def test_a_pool_is_made_from_its_template(server: str, tmp_path: Path, pool: str, kind: str) -> None:
    template = f"infra/prefect/{kind}-pool.json"
    prefect(server, tmp_path, "work-pool", "create", pool, "--type", kind, "--base-job-template", template)
    made = api(server).get(f"/work_pools/{pool}")
    assert made["type"] == kind
    assert made["base_job_template"] == json.loads((ROOT / template).read_text())
    prefect(server, tmp_path, "--no-prompt", "deploy", "--name", "rcm-distill", "--pool", pool)
    deployed = api(server).deployment("rcm-distill/rcm-distill")
    assert deployed["work_pool_name"] == pool
    assert os.fspath(ROOT) in json.dumps(deployed["pull_steps"])

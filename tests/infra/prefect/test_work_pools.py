"""Work pools on a real Prefect server, created and used by the commands of the documentation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import ROOT

from infra.prefect.server import Local, api

pytestmark = pytest.mark.system


def prefect(server: str, home: Path, *arguments: str) -> str:
    """Run ``prefect`` and return its output; AssertionError if it fails."""
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

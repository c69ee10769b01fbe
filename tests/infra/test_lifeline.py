"""Whatever ends a flow run, its keeper and its stages end too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]

RUN = """
import os, subprocess, sys
from pathlib import Path
from infra.ray.cluster import shared_cluster

with shared_cluster(Path.cwd(), os.environ) as cluster:
    stage = "import infra.lifeline as l, signal; line = l.connect(); print('up', flush=True); signal.pause()"
    # DVC puts a shell between the run and the stage
    command = f'{sys.executable} -c "{stage}"'
    process = subprocess.Popen(command, shell=True, env=os.environ | cluster, start_new_session=True)
    process.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_stage_and_keeper_end_with_the_run(tmp_path: Path, number: signal.Signals) -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    with subprocess.Popen(
        [sys.executable, "-c", RUN], cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "up\n"
        started = psutil.Process(run.pid).children(recursive=True)
        assert len(started) >= 2
        run.send_signal(number)
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []

"""The keeper and the stages of a flow run end with it, for every cause of its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from workspaces import PATIENCE

from infra.ray.cluster import shared_cluster
from infra.ray.lifeline import CLUSTER, Lifeline

ROOT = Path(__file__).parents[3]

RUN = """
import os, subprocess, sys
from pathlib import Path
from infra.ray.cluster import shared_cluster

with shared_cluster(Path.cwd(), os.environ) as cluster:
    stage = "import infra.ray.lifeline as l, signal; line = l.connect(); print('up', flush=True); signal.pause()"
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


def test_a_ray_that_did_not_start_is_said_and_the_next_stage_starts_another(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="rcm") as short:  # sockets need a short path
        place = Path(short) / "ray"
        place.touch()  # a file where Ray needs a folder
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {"RAY_TMPDIR": str(place), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
        with shared_cluster(tmp_path, env) as given:
            first = Lifeline(given[CLUSTER])
            with pytest.raises(RuntimeError, match=f"^Ray did not start: .*{place}"):
                first.address()
            first.close()
            place.unlink()
            second = Lifeline(given[CLUSTER])
            host, _, port = second.address().rpartition(":")
            socket.create_connection((host, int(port)), timeout=PATIENCE).close()
            second.close()

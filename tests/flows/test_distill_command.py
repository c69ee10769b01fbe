"""``rcm distill`` from nothing: interrupted it leaves nothing running, called again it goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.system

COMMAND = [sys.executable, "-u", "-m", "infra.cli", "distill", "train.iterations=400"]


def interrupted(toy: Any, at: str) -> tuple[int, str]:
    """Exit status and output of ``rcm distill`` that gets SIGINT at a line that begins with ``at``."""
    process = subprocess.Popen(
        COMMAND, cwd=toy.root, env=toy.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if line.startswith(at):
            process.send_signal(signal.SIGINT)
            break
    said.extend(process.stdout)
    process.stdout.close()
    return process.wait(), "".join(said)


def test_interrupted_then_continued(toy: Any) -> None:
    (toy.root / ".rcm" / "failed-once").mkdir()
    status, said = interrupted(toy, at="step 120")
    assert status == 128 + signal.SIGINT, said
    assert "starts at step 0" in said
    assert toy.processes() == []

    before = toy.ran()
    answer = toy.run(*COMMAND)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert answer.stderr == ""
    # train resumes where its last checkpoint was; what was finished before is not done again
    start = next(line for line in answer.stdout.splitlines() if line.startswith("starts at step"))
    assert int(start.split()[-1]) >= 80
    assert toy.ran() == [*before, "train", "select", "evaluate", "report", "publish"]
    assert "Stage 'teacher' didn't change, skipping" in answer.stdout
    assert "student_1" in answer.stdout
    assert f"{toy.root}/runs/report/report.html" in answer.stdout
    assert f"http://127.0.0.1:{toy.port}/runs/flow-run/" in answer.stdout
    assert (toy.root / "dvc.lock").is_file()

    # the page stays up for a look, until it is stopped
    assert toy.api.healthy()
    assert toy.rcm("stop").stdout == "stopped: worker, server\n"
    assert toy.processes() == []

"""The real stages, small: ``rcm distill`` interrupted leaves nothing running; after a power cut the next one continues
the training and ends with the same bits.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from projects import Toy, commit, copy_project, free_port
from tiny import tiny_values
from workspaces import PATIENCE, change, configure, wait_for

from infra.executors.local import LocalExecutor
from rcm_core.stages import train
from rcm_core.storage.files import sha256_folder

pytestmark = [pytest.mark.system, pytest.mark.slow]

SETTINGS = {"train.iterations": 60, "train.checkpoint_every": 4, "train.candidate_every": 30}
DISTILL = [sys.executable, "-u", "-m", "infra.cli", "distill"]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Toy]:
    """This project with small sizes; none of its processes outlives the test."""
    root = tmp_path / "project"
    copy_project(root)
    (root / "params.yaml").write_text(yaml.safe_dump(change(tiny_values(), SETTINGS)))
    commit(root)
    project = Toy(root, free_port(), uuid.uuid4().hex)
    yield project
    project.rcm("stop")


def start(project: Toy, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as lines, log.with_suffix(".err").open("wb") as errors:
        return subprocess.Popen(DISTILL, cwd=project.root, env=project.env, stdout=lines, stderr=errors)


def last_checkpoint(project: Toy) -> int:
    """Return the step of the newest complete checkpoint; not all older ones are kept."""
    whole = project.root.glob(".rcm/state/train-*/step_*/progress.json")
    return max((int(p.parent.name.removeprefix("step_")) for p in whole), default=0)


def test_interrupted_then_cut_off_it_ends_with_the_same_bits(
    project: Toy, tiny_run: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    process = start(project, log)
    wait_for("a checkpoint", lambda: last_checkpoint(project), log, process)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 128 + signal.SIGINT, log.read_text()
    assert project.processes() == []

    before = last_checkpoint(project)
    process = start(project, log)
    wait_for("another checkpoint", lambda: last_checkpoint(project) > before, log, process)
    project.cut_power()
    process.wait()
    assert not (project.root / "runs/train").exists()

    last = last_checkpoint(project)
    assert start(project, log).wait(PATIENCE) == 0, log.read_text()[-3000:]
    assert log.with_suffix(".err").read_text() == ""
    said = log.read_text()
    assert re.search(r"^run \S+: its process is gone .*; it was RUNNING, now CRASHED$", said, re.MULTILINE)
    # train continues from its last checkpoint; finished stages do not run again
    assert "Stage 'trajectories' didn't change, skipping" in said
    resumed = re.search(r"resumed at step (\d+) of 60", said)
    assert resumed
    # Ray may not have recorded the last one before the kill
    assert before - SETTINGS["train.checkpoint_every"] <= int(resumed[1]) <= last
    assert "student_1" in said
    assert f"{project.root}/runs/report/report.html" in said
    assert f"http://127.0.0.1:{project.port}/runs/flow-run/" in said
    assert (project.root / "dvc.lock").is_file()
    assert (project.root / "runs/publish/pipeline/README.md").is_file()

    reference = tmp_path / "reference"
    shutil.copytree(tiny_run, reference, ignore=shutil.ignore_patterns(".rcm", "train"))
    train.run(configure(reference, SETTINGS), reference, LocalExecutor(reference))
    made, expected = (p / "runs/train/candidates" for p in (project.root, reference))
    assert sha256_folder(made) == sha256_folder(expected)

    # the page stays available until it is stopped
    assert project.api.healthy()
    assert project.rcm("stop").stdout == "stopped: keeper, worker, server\n"
    assert project.processes() == []

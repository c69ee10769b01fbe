"""Real training on a real Ray, as dvc.yaml starts it: after any kill the student is bitwise the same.

One Ray is shared by the runs here, as a flow run shares it among its stages; where a driver is killed it has
one of its own, so that it can be seen to take it along.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from processes import on_ranks
from ranks import distil_on
from safetensors.torch import load_file
from trainings import Run, resumptions, signal_a_worker, workers_of
from workspaces import PATIENCE, command, configure, environment, launch

from infra.executors.local import LocalExecutor
from infra.ray.cluster import shared_cluster
from rcm_core.stages import train
from rcm_core.storage.files import sha256, sha256_folder
from rcm_core.storage.run_folder import RunFolder

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

SETTINGS = {
    "train.iterations": 96,
    "train.checkpoint_every": 4,
    "train.candidate_every": 48,
    "train.log_every": 24,
    "train.device": "cpu",
}


@pytest.fixture(scope="module")
def fresh(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Create workspaces of the tiny run without its training, with enough iterations to kill a process."""

    def make(name: str, **settings: Any) -> Path:
        folder = tmp_path_factory.mktemp(name) / "workspace"
        shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns(".rcm", "train"))
        shutil.copytree(tiny_run / "data", folder / "data", dirs_exist_ok=True)
        configure(folder, SETTINGS | {f"train.{k}": v for k, v in settings.items()})
        return folder

    return make


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("cluster")
    with shared_cluster(folder, environment(folder)) as given:
        yield given


@pytest.fixture(scope="module")
def reference(fresh: Callable[..., Path]) -> Path:
    """An uninterrupted training in this process, without Ray."""
    return local_run(fresh("reference"))


def local_run(workspace: Path) -> Path:
    train.run(configure(workspace, {}), workspace, LocalExecutor(workspace))
    return workspace


def hashes(workspace: Path) -> dict[str, str]:
    """Return the hashes of all deterministic outputs of training."""
    out = workspace / "runs/train"
    names = sorted(p.name for p in (out / "candidates").iterdir())
    assert len(names) == 4
    return {"curves": sha256(out / "curves.csv")} | {n: sha256_folder(out / "candidates" / n) for n in names}


@pytest.fixture
def start() -> Iterator[Callable[..., Run]]:
    """Start runs; none outlives the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(workspace: Path, env: dict[str, str], ranks: Sequence[str] = ()) -> Run:
        path = workspace / f"log-{len(begun)}.txt"
        with path.open("w") as log:
            process = subprocess.Popen(
                [*ranks, *command("train")[1:]] if ranks else command("train"),
                cwd=workspace,
                env=environment(workspace) | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )
        begun.append(process)
        return Run(workspace, process, path)

    yield begin
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def bereaved() -> Iterator[list[psutil.Process]]:
    """Processes that must have ended by themselves after all tests of this file."""
    processes: list[psutil.Process] = []
    yield processes
    _, alive = psutil.wait_procs(processes, timeout=90)
    assert alive == []


def test_a_killed_driver_takes_all_along_and_the_next_one_resumes_and_so_does_a_killed_worker(
    fresh: Callable[..., Path],
    cluster: dict[str, str],
    reference: Path,
    start: Callable[..., Run],
    bereaved: list[psutil.Process],
) -> None:
    run = start(fresh("driver"), {})
    run.wait_for(run.checkpoints, "checkpoint")
    below = psutil.Process(run.process.pid).children(recursive=True)
    assert workers_of(psutil.Process(run.process.pid))
    # Ray's two agents idle for the 60 s in which Ray detects a dead cluster; all other processes end at once
    agents = [p for p in below if p.name() in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]
    bereaved.extend(agents)
    run.process.kill()
    run.process.wait()
    _, alive = psutil.wait_procs([p for p in below if p not in agents], timeout=40)
    assert alive == []
    assert not (run.workspace / "runs/train").exists()  # nothing half-written

    again = start(run.workspace, cluster)
    signal_a_worker(again, 1)
    said = again.end()
    assert "lost rank 0" in said
    resumed = resumptions(said)
    assert len(resumed) == 2
    assert 0 < resumed[0] < resumed[1]
    assert hashes(run.workspace) == hashes(reference)
    assert [p for p in (run.workspace / ".rcm/state").iterdir() if p.is_dir()] == []


def test_shards_are_the_same_bytes_whoever_makes_them(
    tiny_run: Path, tmp_path: Path, cluster: dict[str, str]
) -> None:
    """Two Ray workers here give the same as one process in the tiny run."""
    folder = tmp_path / "workspace"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns(".rcm", "trajectories"))
    ended = launch(folder, "trajectories", environment(folder) | cluster)
    assert ended.returncode == 0, ended.stderr
    assert "trajectories: 3/3 shards" in ended.stdout
    ours, theirs = (w / "runs/trajectories" for w in (folder, tiny_run))
    assert sha256_folder(ours / "shards") == sha256_folder(theirs / "shards")
    for name in ("manifest.parquet", "negative.safetensors", "store.json"):
        assert sha256(ours / name) == sha256(theirs / name)


@pytest.fixture(scope="module")
def two_ranks(fresh: Callable[..., Path]) -> Path:
    """An uninterrupted training on two ranks, without Ray."""
    folder = fresh("two", workers=2)
    state = folder / "state"
    state.mkdir()
    on_ranks(distil_on, (2, folder, state), 2)
    train.write(RunFolder.of(folder), state)
    return folder


def test_ray_gives_the_bits_of_two_processes_also_when_one_is_told_to_leave_and_one_is_killed(
    fresh: Callable[..., Path], cluster: dict[str, str], two_ranks: Path, start: Callable[..., Run]
) -> None:
    """SIGTERM is the notice of a spot-instance agent or Kubernetes."""
    run = start(fresh("killed", workers=2), cluster)
    signal_a_worker(run, 2, signal.SIGTERM)
    run.wait_for(lambda: resumptions(run.log.read_text()), "resumption")
    signal_a_worker(run, 2)
    said = run.end()
    assert re.search(r"preemption notice: checkpoint at step (\d+);", said)[1] == str(resumptions(said)[0])  # type: ignore[index]
    assert "lost rank" in said
    assert hashes(run.workspace) == hashes(two_ranks)


def test_torchrun_gives_the_bits_of_ray_s_workers_also_when_told_to_leave_and_when_a_rank_is_killed(
    fresh: Callable[..., Path], two_ranks: Path, start: Callable[..., Run]
) -> None:
    folder = fresh("torchrun", workers=2)
    run = start(folder, {"RCM_EXECUTOR": "torchrun"}, torchrun(2))
    run.wait_for(run.checkpoints, "checkpoint")
    run.process.terminate()
    assert run.process.wait(PATIENCE)
    left = re.search(r"preemption notice: checkpoint at step (\d+);", run.log.read_text())
    assert left

    again = start(folder, {"RCM_EXECUTOR": "torchrun"}, torchrun(2, "--max-restarts=1"))
    again.wait_for(again.checkpoints, "checkpoint")
    ranks = [p for p in psutil.Process(again.process.pid).children() if "infra.launch" in p.cmdline()]
    assert len(ranks) == 2
    ranks[-1].kill()
    first, second = resumptions(again.end())
    assert first == int(left[1]) < second
    assert hashes(folder) == hashes(two_ranks)
    assert [p for p in (folder / ".rcm/state").iterdir() if p.is_dir()] == []


def torchrun(ranks: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *options]


def test_torchrun_with_another_number_of_ranks_is_one_sentence(fresh: Callable[..., Path]) -> None:
    folder = fresh("mismatch", workers=2)
    env = environment(folder)
    del env["RCM_EXECUTOR"]  # the ranks know themselves
    ended = subprocess.run(
        [*torchrun(1), *command("train")[1:]],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode
    assert (
        "\nerror: workers = 2, but torchrun has started 1; start it with 2 processes" in f"\n{ended.stderr}"
    )
    assert not (folder / "runs/train").exists()


def test_two_ranks_are_one_rank_with_two_accumulation_steps(
    fresh: Callable[..., Path], two_ranks: Path
) -> None:
    """Part = accumulation step x world + rank: they see the same samples, noise and angles."""
    accumulated = local_run(fresh("accumulated", accumulate=2))
    start = load_file(two_ranks / "runs/teacher/pipeline/transformer/diffusion_pytorch_model.safetensors")
    for folder in (two_ranks / "runs/train/candidates").iterdir():
        path = folder.relative_to(two_ranks) / "transformer/diffusion_pytorch_model.safetensors"
        ours, theirs = load_file(two_ranks / path), load_file(accumulated / path)
        flat = [torch.cat([w[n].flatten() for n in sorted(start)]) for w in (ours, theirs, start)]
        moved, apart = (flat[0] - flat[2]).norm(), (flat[0] - flat[1]).norm()
        # gradients are summed in another order: float32 rounding, which 96 steps of Adam, whose steps do not
        # shrink with the gradient, may multiply (5e-6 was seen)
        assert moved > 0
        assert apart / moved < 1e-4

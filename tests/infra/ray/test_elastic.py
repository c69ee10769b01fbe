"""Ray Train on a changing set of machines: fewer workers continue, more join later, the training is the same."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster
from safetensors.torch import load_file
from workspaces import configure, wait_for

from infra.executors.local import LocalExecutor
from infra.ray import executor as ray_executor
from infra.ray.environment import prepare
from infra.ray.executor import RayExecutor
from rcm_core.stages import train
from rcm_core.training import distill

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]
ROOT = Path(__file__).parents[3]
MACHINE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
SETTINGS = {
    "train.iterations": 30,
    "train.checkpoint_every": 3,
    "train.candidate_every": 30,
    "train.log_every": 30,
    "train.device": "cpu",
    "train.workers": 2,
    "train.min_workers": 1,
}


@pytest.fixture
def machines(toys: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster of one machine with one CPU; tests add others."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(toys), str(ROOT), str(ROOT / "kernels")]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(ray_executor, "RESIZE_SECONDS", 1)
    prepare(ROOT)
    cluster = Cluster(initialize_head=True, head_node_args=MACHINE | {"include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def fresh(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny run before its training."""
    folder = tmp_path / "workspace"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns(".rcm", "train"))
    configure(folder, SETTINGS)
    return folder


def weights(workspace: Path, name: str) -> torch.Tensor:
    path = workspace / name / "diffusion_pytorch_model.safetensors"
    return torch.cat([value.flatten() for _, value in sorted(load_file(path).items())])


def test_fewer_workers_go_on_and_more_join_again(
    machines: Cluster,
    fresh: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(fresh, alone)
    monkeypatch.setenv("RCM_HOME", str(alone / ".rcm"))
    train.run(configure(alone, {}), alone, LocalExecutor(alone))  # one process computes all parts

    monkeypatch.setenv("RCM_HOME", str(fresh / ".rcm"))
    second = machines.add_node(**MACHINE)

    def log() -> Path:
        return next((fresh / ".rcm/state").glob("train-*/log.txt"), fresh / "none")

    def checkpoints() -> set[str]:
        return {p.parent.name for p in (fresh / ".rcm/state").glob("train-*/step_*/progress.json")}

    def resumed() -> list[str]:
        return (
            re.findall(r"resumed at step \d+ of 30 on (\d) rank", log().read_text()) if log().exists() else []
        )

    from toys import patient

    monkeypatch.setattr(distill, "loop", patient)
    executor = RayExecutor(fresh, machines.address)
    with ThreadPoolExecutor(1) as pool:  # machines can only be added in the main thread
        training = pool.submit(train.run, configure(fresh, {}), fresh, executor)
        wait_for("checkpoint", lambda: training.done() or len(checkpoints()) >= 2, fresh / "params.yaml")
        machines.remove_node(second, allow_graceful=False)
        wait_for("one rank", lambda: training.done() or resumed() == ["1"], fresh / "params.yaml")
        machines.add_node(**MACHINE)
        training.result()
    executor.close()
    said = capsys.readouterr().out
    assert re.findall(r"resumed at step \d+ of 30 on (\d) rank", said) == ["1", "2"]
    for length in ("0.05", "0.1"):
        name = f"runs/train/candidates/step_000030-ema_{length}/transformer"
        start = weights(fresh, "runs/teacher/pipeline/transformer")
        moved, apart = (weights(alone, name) - w for w in (start, weights(fresh, name)))
        # gradients summed in another order: float32 rounding, which 30 steps of Adam may multiply
        assert apart.norm() < 1e-3 * moved.norm()

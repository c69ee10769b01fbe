"""Every preset through the real stages on a real (tiny) diffusers network: routes and real images kept, trained on one
rank and on two, its candidates plain networks.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from presets import EMBEDDED, preset
from processes import on_ranks
from ranks import distil_each_on
from safetensors.torch import load_file
from workspaces import configure

from infra.executors.local import LocalExecutor
from rcm_core.config.load import load_params
from rcm_core.models import wan
from rcm_core.pipelines.folder import check_tensors
from rcm_core.stages import train, trajectories

pytestmark = pytest.mark.slow

PRESETS = {name: preset(name) for name in EMBEDDED}
TINY = {
    "warmup": 2, "blocks": [0, 1], "gan_blocks": [1], "rollout_steps": 3, "trajectory_steps": 4, "pairs": 3,
    "weighting": "adaptive_prior", "stage_every": 4,
}  # fmt: skip
ITERATIONS = 4


@pytest.fixture(scope="module")
def rich(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with trajectories that contain everything a method may need."""
    folder = tmp_path_factory.mktemp("rich") / "workspace"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns(".rcm", "train", "trajectories"))
    params = configure(folder, {"trajectories.keep_trajectories": True, "trajectories.real": True})
    trajectories.run(params, folder, LocalExecutor(folder))
    return folder


def prepared(rich: Path, folder: Path, name: str) -> Path:
    """Prepare a workspace with the preset's method and optimiser, and few small iterations."""
    shutil.copytree(rich, folder, ignore=shutil.ignore_patterns(".rcm"))
    section = PRESETS[name]
    method = section["method"] | {k: v for k, v in TINY.items() if k in section["method"]}
    if name == "dmd2":
        method["gan_blocks"] = []
    small = {
        "iterations": ITERATIONS,
        "batch": 4,
        "candidate_every": 4,
        "checkpoint_every": 2,
        "log_every": 2,
    }
    values: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
    values |= {"method": method, "sampler": section["sampler"]}
    values["train"] |= section["train"] | small | {"threads": 1, "device": "cpu"}
    (folder / "params.yaml").write_text(yaml.safe_dump(values))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "transformer/diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def workspaces(rich: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("presets")
    return {name: prepared(rich, root / name, name) for name in PRESETS}


@pytest.fixture(scope="module")
def sharded(workspaces: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Candidates of every preset from two ranks, and those of one preset with all kinds of parts a second time."""
    root = tmp_path_factory.mktemp("sharded")
    runs = {**workspaces, "again": workspaces["sana_sprint"]}
    for name in runs:
        (root / name).mkdir()
    pairs = [(workspace, root / name) for name, workspace in runs.items()]
    on_ranks(distil_each_on, (2, pairs), 2)
    return {name: root / name / "candidates" for name in runs}


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_preset_trains_on_one_rank_and_on_two(
    workspaces: dict[str, Path], sharded: dict[str, Path], name: str
) -> None:
    workspace = workspaces[name]
    train.run(load_params(workspace / "params.yaml"), workspace, LocalExecutor(workspace))
    (folder,) = (workspace / "runs/train/candidates").glob("*ema_0.05")
    check_tensors(wan.LAYOUT, folder)  # exactly the tensors of a plain network, without the student's extras
    teacher, student = weights(workspace / "runs/teacher/pipeline"), weights(folder)
    assert any(not torch.equal(student[key], teacher[key]) for key in teacher)
    both = weights(sharded[name] / folder.name)
    assert both.keys() == student.keys()
    assert all(w.isfinite().all() for found in (student, both) for w in found.values())


def test_two_ranks_twice_are_equal_to_the_bit(sharded: dict[str, Path]) -> None:
    (folder,) = sharded["again"].glob("*ema_0.05")
    first = weights(sharded["sana_sprint"] / folder.name)
    assert all(torch.equal(first[name], value) for name, value in weights(folder).items())

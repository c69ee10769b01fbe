"""Warm start from an earlier student: initial weights, refusals, determinism."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from object_store import BUCKET, authorise, object_store
from safetensors.torch import load_file, save_file
from torch import Tensor
from workspaces import configure

from infra.executors import local
from infra.executors.local import LocalContext, LocalExecutor
from rcm_core.errors import InputError
from rcm_core.models import wan
from rcm_core.registry import find_family
from rcm_core.stages import train
from rcm_core.storage.files import sha256_folder
from rcm_core.storage.s3 import filesystem
from rcm_core.training import distill
from rcm_core.training.warm_start import initial_weights

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
NAMES = {"student": "earlier/student", "teacher": "earlier/teacher"}


@pytest.fixture
def fresh(workspace: Path) -> Path:
    """The tiny run without its training; the earlier teacher and student are in ``earlier``."""
    shutil.copytree(workspace / "runs/teacher/pipeline", workspace / NAMES["teacher"])
    shutil.copytree(workspace / "runs/publish/pipeline", workspace / NAMES["student"])
    shutil.rmtree(workspace / "runs/train")
    return workspace


def change_teacher(workspace: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    """Replace the teacher of the workspace."""
    path = workspace / "runs/teacher/pipeline" / WEIGHTS
    changed = {name: change(name, value) for name, value in load_file(path).items()}
    save_file(changed, path, metadata={"format": "pt"})
    facts = json.loads((workspace / "runs/teacher/teacher.json").read_text())
    facts["hash"] = sha256_folder(workspace / "runs/teacher/pipeline")
    (workspace / "runs/teacher/teacher.json").write_text(json.dumps(facts))


def run(workspace: Path, warm: Mapping[str, Any] | None = NAMES) -> None:
    params = configure(workspace, {"train.warm_start": warm and dict(warm)})
    train.run(params, workspace, LocalExecutor(workspace))


def refused(workspace: Path, warm: Mapping[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        run(workspace, warm)
    assert not (workspace / "runs/train").exists()


def folders(workspace: Path) -> tuple[Path, Path, Path]:
    return workspace / NAMES["student"], workspace / NAMES["teacher"], workspace / "runs/teacher/pipeline"


def test_with_equal_teachers_it_begins_exactly_at_the_old_student(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[str, Tensor] = {}

    def look(trainer: distill.Trainer) -> None:
        begun.update({k: v.clone() for k, v in trainer.student.network.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(distill.Trainer, "run", look)
    with pytest.raises(KeyboardInterrupt):
        run(fresh)
    student = load_file(fresh / NAMES["student"] / WEIGHTS)
    assert begun.keys() == student.keys()
    assert all(torch.equal(begun[name], value) for name, value in student.items())
    teacher = load_file(fresh / NAMES["teacher"] / WEIGHTS)
    assert any(not torch.equal(begun[name], value) for name, value in teacher.items())


def test_it_is_moved_by_what_changed_in_the_teacher(fresh: Path) -> None:
    change_teacher(fresh, lambda name, value: value + 0.25)
    student = load_file(fresh / NAMES["student"] / WEIGHTS)
    found = initial_weights(find_family("wan"), *folders(fresh))
    for name, value in student.items():
        # a quarter is exact in binary; the sums round in the last place of numbers of the order of 1
        assert torch.allclose(found[name], value + 0.25, rtol=0, atol=2e-6)


def test_killed_and_resumed_is_the_uninterrupted_run(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_teacher(fresh, lambda name, value: value * 1.01)

    class Dying(LocalContext):
        def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
            super().report(scalars, checkpoint, step)
            if step == 8:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(local, "LocalContext", Dying)
        run(fresh)
    run(fresh)
    resumed = sha256_folder(fresh / "runs/train/candidates")
    record = json.loads((fresh / "runs/train/record.json").read_text())
    assert record["inputs"]["train.warm_start.student"] == sha256_folder(fresh / NAMES["student"])
    assert record["inputs"]["train.warm_start.teacher"] == sha256_folder(fresh / NAMES["teacher"])
    assert record["parameters"]["train"]["warm_start"] == {**NAMES, "endpoint": None}
    shutil.rmtree(fresh / "runs/train")
    run(fresh)
    assert sha256_folder(fresh / "runs/train/candidates") == resumed
    shutil.rmtree(fresh / "runs/train")
    run(fresh, None)
    assert sha256_folder(fresh / "runs/train/candidates") != resumed


def test_another_student_is_another_run_and_never_resumed(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dying(LocalContext):
        def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
            super().report(scalars, checkpoint, step)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(local, "LocalContext", Dying)
        run(fresh)
    path = fresh / NAMES["student"] / WEIGHTS
    save_file({k: 2 * v for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    capsys.readouterr()
    run(fresh)
    assert "resumed" not in capsys.readouterr().out


def test_a_teacher_that_the_student_does_not_come_from_is_refused(fresh: Path) -> None:
    change_teacher(fresh, lambda name, value: value + 1)
    swapped = {**NAMES, "teacher": "runs/teacher/pipeline"}
    refused(
        fresh, swapped, r"has content hash \w+, but the student was distilled from \w+; give that teacher"
    )


@pytest.mark.parametrize(
    ("warm", "words"),
    [
        ({"student": "nowhere"}, "names nowhere, which is not an existing folder"),
        ({"teacher": "nowhere"}, "names nowhere, which is not an existing folder"),
        ({"student": "earlier/teacher"}, r"earlier/teacher has no student\.json"),
    ],
)
def test_what_is_no_student_is_refused(fresh: Path, warm: dict[str, str], words: str) -> None:
    refused(fresh, {**NAMES, **warm}, words)


def test_another_family_is_refused(fresh: Path) -> None:
    path = fresh / NAMES["student"] / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "family": "sana"}))
    refused(fresh, NAMES, "belongs to the family sana, but the teacher to wan")


def test_another_architecture_is_refused_by_its_first_difference(fresh: Path) -> None:
    place = fresh / "runs/teacher/pipeline/transformer/config.json"
    config = json.loads(place.read_text())
    place.write_text(json.dumps({**config, "ffn_dim": 2 * config["ffn_dim"]}))
    with pytest.raises(
        InputError, match=r"train\.warm_start: ffn_dim is 64 in .* and 128 in the new teacher"
    ):
        initial_weights(find_family("wan"), *folders(fresh))


def test_what_a_teacher_leaves_to_diffusers_is_no_difference(fresh: Path) -> None:
    """A published teacher's file often lacks newer settings; a student's file, which we write, has all of them."""
    place = fresh / "runs/teacher/pipeline/transformer/config.json"
    config = json.loads(place.read_text())
    assert config.pop("eps") == 1e-6
    place.write_text(json.dumps(config))
    found = initial_weights(find_family("wan"), *folders(fresh))
    assert found.keys() == load_file(fresh / NAMES["student"] / WEIGHTS).keys()
    place.write_text(json.dumps({**config, "eps": 1e-3}))
    with pytest.raises(InputError, match=r"eps is 1e-06 in .* and 0\.001 in the new teacher"):
        initial_weights(find_family("wan"), *folders(fresh))


def test_the_tensor_that_differs_is_named(fresh: Path) -> None:
    class Loads:
        """Networks with equal settings and different tensors."""

        network_class = wan.network_class

        def load_network(self, folder: Path) -> torch.nn.Module:
            network = wan.load_network(folder)
            if folder == fresh / NAMES["student"]:
                network.proj_out = torch.nn.Linear(3, 5)  # type: ignore[assignment]
            return network

    with pytest.raises(
        InputError, match=r"proj_out\.bias is \[5\] in the student, \[4\] in its teacher and \[4\] in the new"
    ):
        initial_weights(Loads(), *folders(fresh))  # type: ignore[arg-type]


def test_from_s3_it_is_the_same(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(fresh)
    expected = sha256_folder(fresh / "runs/train/candidates")
    shutil.rmtree(fresh / "runs/train")
    authorise(monkeypatch)
    with object_store() as endpoint:
        named = {key: f"s3://{BUCKET}/{place}" for key, place in NAMES.items()}
        for key, place in NAMES.items():
            system, root = filesystem(named[key], endpoint)
            for path in [p for p in (fresh / place).rglob("*") if p.is_file()]:
                system.put_file(str(path), f"{root}/{path.relative_to(fresh / place).as_posix()}")
        run(fresh, {**named, "endpoint": endpoint})
        elsewhere = {**named, "teacher": f"s3://{BUCKET}/nothing", "endpoint": endpoint}
        with pytest.raises(InputError, match="nothing, which is not an existing folder"):
            run(fresh, elsewhere)
    assert sha256_folder(fresh / "runs/train/candidates") == expected

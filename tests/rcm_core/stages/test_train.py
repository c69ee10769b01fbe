"""Trainings that are stopped or refused, or whose inputs are damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from tiny import ROOT
from workspaces import accept_teacher, configure, environment, launch

from infra.commands.summary import early_stop
from infra.executors import local
from infra.executors.local import LocalContext, LocalExecutor
from rcm_core.config.method_requirements import refuse_impossible, refuse_split
from rcm_core.errors import InputError
from rcm_core.protocols import MethodRequirements
from rcm_core.registry import find_family
from rcm_core.stages import report, select, train
from rcm_core.storage.files import sha256, sha256_folder


def hashes(workspace: Path) -> list[str]:
    out = workspace / "runs/train"
    return [sha256_folder(out / "candidates"), sha256(out / "curves.csv"), sha256(out / "health.json")]


def states(workspace: Path) -> list[Path]:
    return [p for p in (workspace / ".rcm/state").glob("train-*") if p.is_dir()]


def run(workspace: Path, **settings: Any) -> None:
    params = configure(workspace, {k.replace("__", "."): v for k, v in settings.items()})
    train.run(params, workspace, LocalExecutor(workspace))


def die_at(step: int, written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the process at checkpoint ``step``, before or after it is ``written``."""

    class Dying(LocalContext):
        def report(self, scalars: Mapping[str, float], checkpoint: Path | None, at: int) -> None:
            if at != step or written:
                super().report(scalars, checkpoint, at)
            if at == step:
                raise KeyboardInterrupt

    monkeypatch.setattr(local, "LocalContext", Dying)


@pytest.fixture
def fresh(workspace: Path) -> Path:
    """The tiny run without its training."""
    shutil.rmtree(workspace / "runs/train")
    return workspace


@pytest.mark.parametrize(("step", "written", "resumed"), [(8, False, 4), (12, True, 12)])
def test_stopped_and_started_again_ends_in_the_same_bits(
    fresh: Path,
    tiny_run: Path,
    step: int,
    written: bool,
    resumed: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        die_at(step, written, patch)
        run(fresh)
    assert not (fresh / "runs/train").exists()
    (state,) = states(fresh)
    half = state / "candidates/step_000006-ema_0.1/.transformer.list_runs"  # left by a kill during writing
    half.mkdir(parents=True)
    (half / "config.json").write_text("{")
    capsys.readouterr()
    torch.manual_seed(step)  # no number comes from the global generator
    run(fresh)
    assert f"resumed at step {resumed} of 12" in capsys.readouterr().out
    assert hashes(fresh) == hashes(tiny_run)
    assert states(fresh) == []


def test_state_of_another_method_is_never_resumed(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        die_at(8, True, patch)
        run(fresh)
    (stale,) = states(fresh)
    before = sha256_folder(stale)
    scm = yaml.safe_load((ROOT / "conf/method/scm.yaml").read_text())["method"]
    params = configure(fresh, {"method": scm | {"warmup": 4}})
    train.run(params, fresh, LocalExecutor(fresh))
    assert "resumed" not in capsys.readouterr().out
    assert states(fresh) == [stale]
    assert sha256_folder(stale) == before
    assert json.loads((fresh / "runs/train/record.json").read_text())["method"] == "scm"


def test_state_that_says_it_is_another_s_is_refused(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        die_at(8, True, patch)
        run(fresh)
    (state,) = states(fresh)
    owner = state / "fingerprint.json"
    owner.write_text(owner.read_text().replace(state.name.removeprefix("train-"), "0" * 20))
    with pytest.raises(
        InputError, match=rf"{state} was started with .*0000.*cannot resume it; remove {state}"
    ):
        run(fresh)
    owner.write_text("{")
    with pytest.raises(InputError, match=rf"{state} was started with {{, but this run is {state.name}"):
        run(fresh)
    assert not (fresh / "runs/train").exists()


def test_a_teacher_that_changed_is_another_training(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        die_at(4, True, patch)
        run(fresh)
    (fresh / "runs/teacher/pipeline/README.md").write_text("another")
    accept_teacher(fresh)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        die_at(4, True, patch)
        run(fresh)
    assert len(states(fresh)) == 2


RUINOUS = {"train__lr": {"student": 0.5, "fake": 0.001}, "train__health__probe_every": 2}
"""Overrides with a learning rate a thousand times too high: after two steps the student is destroyed."""


def health_of(workspace: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((workspace / "runs/train/health.json").read_text())
    return found


def names(workspace: Path) -> list[str]:
    return sorted(p.name for p in (workspace / "runs/train/candidates").iterdir())


def test_a_healthy_run_is_probed_and_left_alone(tiny_run: Path) -> None:
    health = health_of(tiny_run)
    assert (health["step"], health["iterations"], health["tangent"]) == (12, 12, "exact")
    assert (health["verdict"], health["step_downs"], health["nonfinite"]) == (None, [], 0)
    assert health["spikes"] == {"tangent_norm": 0, "gradient_norm": 0}
    assert [r["step"] for r in health["readings"]] == [0, 3, 6, 9, 12]
    curves = pd.read_csv(tiny_run / "runs/train/curves.csv").set_index("step")
    assert list(curves.index) == [0, 3, 4, 6, 8, 9, 12]
    assert list(curves["probe_score"].dropna().index) == [0, 3, 6, 9, 12]
    assert list(curves["gradient_norm"].dropna().index) == [4, 8, 12]
    written = health["readings"][-1]["contrast"]
    assert curves.loc[12, "contrast"] == pytest.approx(written, rel=1e-7)  # 8 digits


def test_a_collapse_keeps_the_candidates_from_before(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(fresh, **RUINOUS, train__candidate_every=1)
    verdict = health_of(fresh)["verdict"]
    assert (verdict["kind"], verdict["since"], verdict["step"]) == ("collapse", 2, 4)
    assert names(fresh) == ["step_000001-ema_0.05", "step_000001-ema_0.1"]
    said = capsys.readouterr().out
    assert "Training stopped at step 4 of 12 because the student collapsed: the validation score was" in said


def test_a_collapse_before_the_first_candidate_as_a_user_meets_it(fresh: Path) -> None:
    configure(fresh, {k.replace("__", "."): v for k, v in RUINOUS.items()})
    ended = launch(fresh, "train", environment(fresh, "local"))
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: training stopped at step 4: the validation score was ")
    assert "No earlier candidate to fall back on; lower train.lr" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (fresh / "runs/train").exists()


def test_a_plateau_ends_the_training_and_the_line_goes_on(fresh: Path) -> None:
    still = {"student": 1e-12, "fake": 1e-12}
    run(fresh, train__lr=still, train__health__patience=2, train__iterations=24)
    health = health_of(fresh)
    assert (health["verdict"]["kind"], health["step"], health["iterations"]) == ("plateau", 6, 24)
    assert names(fresh) == ["step_000006-ema_0.05", "step_000006-ema_0.1"]
    assert states(fresh) == []
    params = configure(fresh, {})
    select.run(params, fresh, LocalExecutor(fresh))
    report.run(params, fresh, LocalExecutor(fresh))
    page = (fresh / "runs/report/report.html").read_text()
    line = "Training stopped at step 6 of 24: the validation score has not improved for 2 probes (best "
    assert page.count(line) == 1
    assert (early_stop(fresh) or "").startswith(line)


def test_probes_can_be_switched_off(fresh: Path) -> None:
    run(fresh, train__health__probe_every=None, train__health__probe_samples=64)  # which would be too many
    assert health_of(fresh)["readings"] == []
    assert pd.read_csv(fresh / "runs/train/curves.csv")["probe_score"].isna().all()


def test_more_than_can_be_held_back_is_said(fresh: Path) -> None:
    with pytest.raises(InputError, match=r"probe_samples 64 of 40 trajectories would be held back"):
        # the params do not know the number of samples of a source
        run(fresh, train__health__probe_samples=64, trajectories__samples=640)


def test_a_corrupt_shard_as_a_user_meets_it(fresh: Path) -> None:
    shard = fresh / "runs/trajectories/shards/shard_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-4])
    ended = launch(fresh, "train", environment(fresh, "local"))
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: shard {shard} is corrupt: ")
    assert "`dvc repro trajectories` makes it again" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (fresh / "runs/train").exists()


def test_no_space_is_said_before_anything_is_written(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(fresh)._replace(free=2**23)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=r"no space: .*train-.* needs \d+\.\d MiB and 8\.0 MiB are free"):
        run(fresh)
    assert not (fresh / "runs/train").exists()


def test_the_space_that_is_asked_for_is_what_is_used(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is at least what one checkpoint and the candidates need, and not many times that."""
    asked: list[int] = []
    monkeypatch.setattr(train, "require_space", lambda folder, needed: asked.append(needed))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        die_at(12, True, patch)
        run(fresh)
    (state,) = states(fresh)
    used = sum(p.stat().st_size for p in state.rglob("*") if p.is_file())
    assert used <= max(asked) <= train.OVERHEAD + 4 * used


def test_a_gpu_that_is_absent_is_said(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"device cuda was asked for, but torch .* sees no GPU here"):
        run(fresh, train__device="cuda")


def test_a_batch_that_does_not_divide_is_said(fresh: Path) -> None:
    with pytest.raises(InputError, match=r"train\.batch 8 does not divide into 3 workers x 1 accumulation"):
        run(fresh, train__workers=3)


def test_what_the_stage_reads_is_made_by_others(fresh: Path) -> None:
    shutil.rmtree(fresh / "runs/trajectories")
    with pytest.raises(InputError, match=r"manifest\.parquet does not exist; make it with `dvc repro`"):
        run(fresh)


class NoTimeLayer:
    time_layer = None


@pytest.mark.parametrize(
    ("requirements", "message"),
    [
        (
            MethodRequirements(frozenset({"student"}), frozenset({"routes"})),
            r"needs routes.*set trajectories\.keep_trajectories to true",
        ),
        (
            MethodRequirements(frozenset({"student"}), frozenset({"real"})),
            r"needs real.*set trajectories\.real to true",
        ),
        (
            MethodRequirements(frozenset({"student"}), frozenset(), frozenset({"guidance"})),
            r"set method\.guidance",
        ),
        (
            MethodRequirements(frozenset({"student", "heads"}), frozenset()),
            r"trains heads; add train\.lr\.heads",
        ),
    ],
)
def test_a_method_that_cannot_have_what_it_needs(requirements: MethodRequirements, message: str) -> None:
    with pytest.raises(InputError, match=message):
        refuse_impossible(requirements, NoTimeLayer(), frozenset({"x0", "condition"}), {"student": 1.0})  # type: ignore[arg-type]


def test_states_that_cannot_be_split_are_refused() -> None:
    plain = MethodRequirements(frozenset({"student"}), frozenset())
    refuse_split(plain, find_family("sana"), 1)
    refuse_split(plain, find_family("wan"), 2)
    with pytest.raises(InputError, match=r"context is 2, but states of this family cannot be split"):
        refuse_split(plain, find_family("sana"), 2)
    with pytest.raises(InputError, match="the method's discriminator sees whole states; set it to 1"):
        refuse_split(plain._replace(heads=(1,)), find_family("wan"), 2)

"""``rcm plan``: tables, the layout it would choose, refusals that say what would fit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from presets import preset
from tiny import ROOT, tiny_values

from infra.cli import app
from infra.commands.plan import compose_planned, plan, progress, run_in_processes
from rcm_core.config.base import check
from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.preflight.dry_runs import Rehearsals
from rcm_core.preflight.estimate import estimate
from rcm_core.preflight.gpus import GPUS, Gpu
from rcm_core.preflight.layout_search import SHARE, attempts, choose
from rcm_core.preflight.teacher_spec import Model, model_of


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the cached dry runs."""
    monkeypatch.setenv("RCM_HOME", str(tmp_path / "home"))
    return tmp_path / "home/plan"


@pytest.fixture
def asked() -> tuple[Model, Params]:
    """A tiny network whose activations are larger than its weights."""
    values = tiny_values()
    values["method"] = {**preset("scm")["method"]}
    values["train"] |= {"iterations": 2, "batch": 32}
    params = check(Params, values, "params.yaml")
    return model_of(params.teacher, ROOT), params


def test_what_does_not_fit_is_refused_and_what_is_said_to_fit_does(
    asked: tuple[Model, Params], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, params = asked
    peak = estimate(model, params).peak
    monkeypatch.setitem(GPUS, "small", Gpu(0.6 * peak / SHARE, 1e12, 1e12))
    with pytest.raises(InputError, match="would fit with train") as refused:
        plan(ROOT, params, "small", 0.3, True)
    shown = capsys.readouterr().out
    assert "student: backward" in shown
    assert "GPU-hours" in shown
    assert all(f"{stage}: " in shown for stage in ("teacher", "trajectories", "train"))
    said = dict(part.split("=") for part in str(refused.value).split("would fit with ")[1].split())
    train: dict[str, Any] = params.train.model_dump(mode="json")
    for name, value in said.items():
        place = train["parallel"] if "parallel" in name else train
        last = name.rsplit(".", 1)[1]
        place[last] = type(place[last])(value)
    changed = check(Params, {**params.model_dump(mode="json"), "train": train}, "params.yaml")
    assert estimate(model, changed).peak <= 0.6 * peak


def test_what_fits_without_further_ado_is_left_as_it_is(asked: tuple[Model, Params]) -> None:
    model, params = asked
    tried: list[str] = []
    best = choose(params, GPUS["h200"], attempts(model, Rehearsals(tried.append))).best
    assert best is not None
    assert best.params == params
    assert (
        len(tried) == len(set(tried)) == 2
    )  # the layout with the least memory, which decides about others, and this one


def test_too_small_a_gpu_is_refused_with_how_many_would_do(
    asked: tuple[Model, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = asked[1].model_dump(mode="json")
    values["teacher"]["mini"] |= {"ffn_dim": 4096}  # weights, not activations
    values["train"] |= {"batch": 1}
    params = check(Params, values, "params.yaml")
    model = model_of(params.teacher, ROOT)
    peak = estimate(model, params).peak
    monkeypatch.setitem(GPUS, "small", Gpu(0.9 * peak / SHARE, 1e12, 1e12))
    with pytest.raises(InputError, match=r"would fit with 2 GPUs and train.batch=\d"):
        plan(ROOT, params, "small", 0.3, True)


def test_networks_go_to_the_machines_memory_where_nothing_else_helps(asked: tuple[Model, Params]) -> None:
    values = asked[1].model_dump(mode="json")
    values["method"] = {**preset("rcm")["method"], "warmup": 0}
    values["teacher"]["mini"] |= {"ffn_dim": 4096}  # weights, not activations
    values["train"] |= {"batch": 1, "lr": {"student": 1e-4, "fake": 1e-4}}
    params = check(Params, values, "params.yaml")
    attempt = attempts(model_of(params.teacher, ROOT), Rehearsals())
    least = choose(params, Gpu(1, 1e12, 1e12), attempt).least
    assert least is not None
    assert least.params.train.parallel.offload == ("teacher", "fake")
    best = choose(params, Gpu(1.01 * least.estimate.peak / SHARE, 1e12, 1e12), attempt).best
    assert best is not None
    assert "train.parallel.offload=[teacher,fake]" in best.overrides
    here = attempt(params)
    assert here is not None
    weights = here.estimate.held["weights: student"]
    saved = here.estimate.peak - least.estimate.peak
    assert saved >= 3 * weights  # of teacher, fake score and its two moments; another pass is the highest now


def test_results_of_other_processes_and_from_disk_are_those_of_a_rehearsal(
    asked: tuple[Model, Params], home: Path
) -> None:
    here = repr(estimate(*asked))  # which shows every bit
    told: list[str] = []
    with run_in_processes() as run:
        assert repr(estimate(*asked, rehearsals=Rehearsals(told.append, home, run))) == here
        assert len(told) == 1
        assert repr(estimate(*asked, rehearsals=Rehearsals(told.append, home, run))) == here
        assert len(told) == 1
        (file,) = home.iterdir()  # of a network with few blocks, all of them in one rehearsal
        content = file.read_bytes()
        file.write_bytes(content.replace(b"0", b"1", 1))
        assert repr(estimate(*asked, rehearsals=Rehearsals(told.append, home, run))) == here
    assert len(told) == 2
    assert file.read_bytes() == content


def test_a_folder_that_cannot_be_written_is_reported_and_the_plan_is_made(
    asked: tuple[Model, Params], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    told: list[str] = []
    assert estimate(*asked, rehearsals=Rehearsals(told.append, tmp_path / "file/plan")).peak > 0
    assert "cannot be written" in told[1]


def test_progress_is_a_line_for_each_layout_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress() as tell:
        tell("train.workers=2")
        assert capsys.readouterr().err == "rehearsing train.workers=2\n"


def _die(task: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_process_leaves_undone_is_rehearsed_here(asked: tuple[Model, Params]) -> None:
    told: list[str] = []
    with run_in_processes() as run:
        found = estimate(*asked, rehearsals=Rehearsals(told.append, run=lambda _, tasks: run(_die, tasks)))
    assert repr(found) == repr(estimate(*asked))
    assert "was killed" in told[1]


def _wait_in_processes(ready: Connection) -> None:
    with run_in_processes():
        ready.send(None)
        signal.pause()


def test_processes_end_with_a_killed_command() -> None:
    alive, held = os.pipe()  # every process below holds the second end
    here, there = get_context("fork").Pipe()
    command = get_context("fork").Process(target=_wait_in_processes, args=(there,))
    command.start()
    os.close(held)
    here.recv()
    command.kill()
    assert os.read(alive, 1) == b""  # all of them have ended
    os.close(alive)
    command.join()


BAD = [
    (["--gpu", "h2000"], "unknown GPU 'h2000' (did you mean 'h200'?)"),
    (
        ["--teacher", "cosmos-2b-video2world", "teacher=cosmos-2b", "judge.network=x"],
        "a video-to-world network",
    ),
    (["--teacher", "wan-15b", "teacher=wan-14b", "judge.network=x"], "(did you mean 'wan-14b'?)"),
    (
        ["--teacher", "wan-14b", "--gpus", "3", "train.batch=64"],
        "train.batch 64 does not divide into 3 workers",
    ),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD)
def test_bad_input_is_refused_and_changes_nothing(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (ROOT / "params.yaml").read_bytes()
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=re.escape(sentence)):
        app(["plan", *arguments], standalone_mode=False)
    assert (ROOT / "params.yaml").read_bytes() == before


def test_bad_input_is_one_sentence_and_status_2() -> None:
    arguments, sentence = BAD[0]
    command = [sys.executable, "-m", "infra.cli", "plan", *arguments]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert sentence in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_published_network_comes_with_its_preset() -> None:
    params = compose_planned(ROOT, ["method=rcm-wan-14b", "train.batch=64"], "wan-14b", 64)
    assert (params.teacher.family, params.teacher.shape) == ("wan", (16, 21, 60, 104))
    assert params.train.workers == 64
    assert model_of(params.teacher, ROOT).parameters() == 14_288_491_584

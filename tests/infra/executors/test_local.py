"""LocalExecutor fulfils the executor's contract in one process."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.executors.local import LocalExecutor, on_threads
from infra.state import hold
from rcm_core.errors import InputError
from rcm_core.execution import TrainContext, TrainJob


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalExecutor:
    monkeypatch.setenv("RCM_HOME", str(tmp_path / "home"))
    return LocalExecutor(tmp_path)


def test_state_lies_under_rcm_home(executor: LocalExecutor, tmp_path: Path) -> None:
    assert executor.state_root == tmp_path / "home" / "state"


def test_map_runs_each_item_on_one_thread_and_gives_the_threads_back(executor: LocalExecutor) -> None:
    with on_threads(2):
        results = executor.map(lambda n: (n, torch.get_num_threads()), [3, 1, 2], "numbers")
        assert next(results) == (3, 1)
        assert torch.get_num_threads() == 2
        assert list(results) == [(1, 1), (2, 1)]


def test_training_goes_on_from_the_newest_checkpoint_and_keeps_two(
    executor: LocalExecutor, toys: Path, tmp_path: Path
) -> None:
    from toys import count

    state, out = tmp_path / "state", tmp_path / "sum"
    for steps in (7, 22):
        spec = {"steps": steps, "out": str(out)}
        executor.train(TrainJob(count, spec, state=state, workers=1, threads=1, device="cpu", max_failures=0))
        assert out.read_text() == str(sum(range(1, steps + 1)))
    assert sorted(p.name for p in (state / "local").iterdir()) == ["step_00000015", "step_00000020"]


def test_an_interrupted_copy_is_no_checkpoint(executor: LocalExecutor, toys: Path, tmp_path: Path) -> None:
    from toys import count

    state = tmp_path / "state"
    (state / "local" / ".step_00000005.partial").mkdir(parents=True)
    spec = {"steps": 5, "out": str(tmp_path / "sum")}
    executor.train(TrainJob(count, spec, state=state, workers=1, threads=1, device="cpu"))
    assert (tmp_path / "sum").read_text() == "15"


def test_the_first_sigterm_is_a_notice_and_the_second_ends_it(
    executor: LocalExecutor, tmp_path: Path
) -> None:
    told: list[bool] = []

    def loop(context: TrainContext, spec: dict[str, Any]) -> None:
        for _ in range(spec["signals"]):
            told.append(context.leaving())
            os.kill(os.getpid(), signal.SIGTERM)
        told.append(context.leaving())

    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        for signals in (1, 2):
            with pytest.raises(SystemExit) if signals == 2 else nullcontext():
                spec = {"signals": signals}
                executor.train(
                    TrainJob(loop, spec, state=tmp_path / "state", workers=1, threads=1, device="cpu")
                )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [False, True, False, True]


def test_more_than_one_worker_is_refused(executor: LocalExecutor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="workers = 2: the local executor has 1"):
        executor.train(TrainJob(print, {}, state=tmp_path, workers=2, threads=1, device="cpu"))


def test_an_absent_gpu_is_refused(executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"device cuda was asked for, but torch .* sees no GPU"):
        list(executor.map(print, [1], "prints", device="cuda"))


def test_a_state_in_use_is_refused_by_name(executor: LocalExecutor, tmp_path: Path) -> None:
    with hold(tmp_path / "state"), pytest.raises(InputError, match=f"process {os.getpid()}"):
        executor.train(TrainJob(print, {}, state=tmp_path / "state", workers=1, threads=1, device="cpu"))

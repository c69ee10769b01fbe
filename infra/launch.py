"""Run one stage: ``python -m infra.launch <stage> [--params params.yaml]`` (the command of dvc.yaml)."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from infra.interrupt import unwind_on_signals
from infra.ray.lifeline import Lifeline, connect
from infra.state import hold, state_home, state_root
from rcm_core.config.load import load_params
from rcm_core.errors import InputError, exit_for_bad_input, nearest
from rcm_core.execution import Item, Result, TrainJob
from rcm_core.registry import available

EXECUTORS = ("ray", "local", "torchrun")
COMPUTING = ("teacher", "trajectories", "train", "select", "evaluate")
"""Stages that use the cluster; their flow run's Ray starts while they import."""


class LazyExecutor:
    """The executor that ``RCM_EXECUTOR`` names (ray | local | torchrun), started when a stage first uses it."""

    def __init__(self, workspace: Path, line: Lifeline | None) -> None:
        self.workspace = workspace
        self.state_root = state_root(workspace)
        self._line = line
        self._started: Any = None

    def __enter__(self) -> LazyExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._started is not None:
            self._started.close()

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], label: str, *, device: str = "cpu"
    ) -> Iterator[Result]:
        if not items:
            return iter(())
        return self._executor().map(function, items, label, device=device)

    def train(self, job: TrainJob) -> None:
        self._executor().train(job)

    def _executor(self) -> Any:
        if self._started is None:
            self._started = _start(_executor_name(), self.workspace, self._line)
        return self._started


def _start(name: str, workspace: Path, line: Lifeline | None) -> Any:
    if name == "local":
        from infra.executors.local import LocalExecutor

        return LocalExecutor(workspace)
    if name == "torchrun":
        raise InputError(
            "RCM_EXECUTOR = torchrun works only with `torchrun ... -m infra.launch <stage>`; unset RCM_EXECUTOR"
        )
    from infra.ray.executor import RayExecutor

    return RayExecutor(workspace, line.address() if line else os.environ.get("RAY_ADDRESS"))


def _executor_name() -> str:
    """Return the value of ``RCM_EXECUTOR``; by default "torchrun" on a rank of torchrun, else "ray"."""
    ranks = {"RANK", "WORLD_SIZE"} <= set(os.environ)
    name = os.environ.get("RCM_EXECUTOR", "torchrun" if ranks else "ray")
    if name not in EXECUTORS:
        raise InputError(f"RCM_EXECUTOR = {name!r}: expected {', '.join(EXECUTORS[:-1])} or {EXECUTORS[-1]}")
    return name


def run_stage(stage: str, params: Path, workspace: Path) -> None:
    """Run ``rcm_core.stages.<stage>`` on ``params`` in ``workspace``, under its exclusive lock."""
    names = available("stages")
    if stage not in names:
        raise InputError(f"unknown stage {stage!r}{nearest(stage, names)}; available: {', '.join(names)}")
    if _executor_name() == "torchrun":
        _run_on_ranks(stage, params, workspace)
        return
    checked = load_params(params)
    line = connect()
    if line and stage in COMPUTING:
        line.ask()
    module = importlib.import_module(f"rcm_core.stages.{stage}")
    with hold(_lock(stage, workspace)), LazyExecutor(workspace, line) as executor:
        module.run(checked, workspace, executor)


def _run_on_ranks(stage: str, params: Path, workspace: Path) -> None:
    from infra.executors.torchrun import TorchrunExecutor

    with TorchrunExecutor(workspace) as executor:
        if executor.rank:
            executor.follow()
            return
        checked = load_params(params)
        with hold(_lock(stage, workspace)):
            importlib.import_module(f"rcm_core.stages.{stage}").run(checked, workspace, executor)


def _lock(stage: str, workspace: Path) -> Path:
    return state_home(workspace) / "locks" / f"{workspace.name}-{stage}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one stage. Exit status: 0; 2 for bad input or 75 for an outage, with one sentence; 130 or 143 on a signal."""
    parser = argparse.ArgumentParser(prog="python -m infra.launch", description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    unwind_on_signals()
    with exit_for_bad_input():
        run_stage(options.stage, options.params, Path.cwd())


if __name__ == "__main__":
    main()

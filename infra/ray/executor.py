"""Ray as ``rcm_core.execution.Executor``: actors for ``map``, Ray Train for ``train``."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infra.executors.local import numbers_of
from infra.ray.capacity import capacity
from infra.ray.connection import connect, start_local
from infra.ray.storage import Checkpoints, Place
from infra.ray.workers import Workers
from infra.state import hold, state_root
from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.execution import Item, Result, TrainJob
from rcm_core.storage.files import storage_errors
from rcm_core.storage.s3 import unbroken

KEPT = 2
RESIZE_SECONDS = 60
"""Seconds between checks for capacity for more workers."""


class RayExecutor:
    """Executor on the Ray at ``address``, or on a local one that ends with this process."""

    def __init__(self, workspace: Path, address: str | None) -> None:
        self.workspace = workspace
        self.state_root = state_root(workspace)
        self.address = address
        self.checkpoints = Checkpoints()
        self.workers = Workers(workspace)
        if address:
            connect(workspace, address)
        else:
            start_local(workspace)

    def close(self) -> None:
        """Leave the cluster; a Ray that was started here ends."""
        import ray

        ray.shutdown()
        self.checkpoints.drop()

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        label: str,
        *,
        device: str = "cpu",
    ) -> Iterator[Result]:
        gpus = self._gpus(device)
        self._require(label, cpus=1, gpus=gpus)
        return self.workers.map(function, items, label, gpus)

    def train(self, job: TrainJob) -> None:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from infra.ray.training import Failures, Listener, run_rank

        gpus, numbers = self._gpus(job.device), numbers_of(job.workers)
        least, most = numbers[0], numbers[-1]
        self._require(f"training with {least} x {job.threads} threads", least * job.threads, least * gpus)
        self.workers.release()
        state = job.state.absolute()
        state.mkdir(parents=True, exist_ok=True)
        log = state / "log.txt"
        place, storage = self.checkpoints.place(state)
        trainer = TorchTrainer(
            run_rank,
            train_loop_config={
                "loop": job.loop,
                "spec": job.spec,
                "threads": job.threads,
                "workspace": str(self.workspace),
                "log": str(log),
                "place": place,
            },
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=most if least == most else (least, most),
                elastic_resize_monitor_interval_s=RESIZE_SECONDS,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": job.threads, **({"GPU": gpus} if gpus else {})},
            ),
            run_config=RunConfig(
                name=state.name,
                **storage,
                failure_config=FailureConfig(max_failures=job.max_failures, controller_failure_limit=1),
                checkpoint_config=CheckpointConfig(num_to_keep=KEPT),
                callbacks=[Failures(log), Listener()],
            ),
        )
        with hold(state):
            _fit(trainer, log, place)

    def _gpus(self, device: str) -> int:
        """Return the GPUs per task or rank; a cluster's GPUs count even if this process sees none."""
        present = capacity()["GPU"] >= 1
        if device == "cuda" and not present:
            resolve_device(device)
            raise InputError("device cuda was asked for, but Ray has no GPU; start Ray with --num-gpus")
        return 1 if present and device != "cpu" else 0

    def _require(self, what: str, cpus: int, gpus: int) -> None:
        have = capacity()
        for kind, needed in (("CPU", cpus), ("GPU", gpus)):
            if needed > have[kind]:
                where = f"the Ray at {self.address}" if self.address else "this machine's Ray"
                raise InputError(
                    f"{what} needs {needed} {kind}s and {where} has {have[kind]}; use fewer workers or"
                    f" threads, or start Ray with --num-{kind.lower()}s {needed}"
                )


def _fit(trainer: Any, log: Path, place: Place) -> None:
    """Run ``trainer.fit()`` with the run's log on our output.

    It runs in another thread, because in the main thread Ray would replace the SIGINT handler and not restore it.
    """
    ended: list[BaseException | None] = []
    done = threading.Event()

    def fit() -> None:
        try:
            trainer.fit()
            ended.append(None)
        except BaseException as error:
            ended.append(error)
        finally:
            done.set()

    log.touch()
    with log.open() as lines:
        lines.seek(0, os.SEEK_END)
        threading.Thread(target=fit, daemon=True, name="ray-train").start()
        while not done.wait(0.1):
            _forward(lines)
        _forward(lines)
    _raise(ended[0], place)


def _forward(lines: Any) -> None:
    text = lines.read()
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


def _raise(failure: BaseException | None, place: Place) -> None:
    """Raise the error of storing checkpoints at ``place``, the loop's own exception, or else Ray's."""
    from ray.exceptions import RayActorError
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    from infra.ray.training import original, summary

    if failure is None:
        return
    cause = failure.controller_failure if isinstance(failure, ControllerError) else failure
    if isinstance(cause, (InputError, *storage_errors())):
        with unbroken(place.name):
            raise cause from failure
    if isinstance(failure, RayActorError) and place.system is not None:
        with unbroken(place.name):  # if a controller could not start, Ray reports only that it died
            place.ask()
    if isinstance(failure, WorkerGroupError):
        ranks = sorted(failure.worker_failures.items())
        lost = "; ".join(f"rank {rank}: {summary(error)}" for rank, error in ranks)
        raise RuntimeError(f"training failed ({lost})") from original(ranks[0][1])
    raise failure

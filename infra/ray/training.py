"""Code of training workers and their controller: the training loop in a Ray Train context."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import ray.train
import torch
from ray.train import Checkpoint, UserCallback
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2._internal.execution.callback import WorkerCallback
from rcm_kernels.plain import fastest_attention

from infra.executors.preemption import listen
from infra.ray.storage import Place
from rcm_core.errors import InputError
from rcm_core.storage.s3 import unbroken

TOLD = threading.Event()
"""Event that is set when this worker's process gets SIGTERM."""


class Left(Exception):  # noqa: N818
    """Exception that ends a worker group after a checkpoint; Ray starts the next group."""


class Listener(WorkerCallback):
    """Callback for SIGTERM. The loop has its own thread; signals reach only the main thread, where Ray calls this."""

    def after_init_train_context(self) -> None:
        listen(TOLD)


class RayContext:
    """One rank of a Ray Train worker group, as ``rcm_core.protocols.TrainContext``."""

    def __init__(self, opened: ExitStack, place: Place) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world = context.get_world_size()
        self._opened, self._place = opened, place

    def resume(self) -> Path | None:
        checkpoint = ray.train.get_checkpoint()
        with unbroken(self._place.name):
            return None if checkpoint is None else Path(self._opened.enter_context(checkpoint.as_directory()))

    def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
        with unbroken(self._place.name):
            ray.train.report(
                dict(scalars),
                checkpoint=None if checkpoint is None else Checkpoint.from_directory(checkpoint),
                checkpoint_dir_name=None if checkpoint is None else f"step_{step:08d}",
                checkpoint_upload_fn=None if self._place.system is None else self._place.upload,
            )

    def leaving(self) -> bool:
        return TOLD.is_set()

    def leave(self) -> NoReturn:
        ray.train.report({}, None)  # when the controller takes this, it has recorded the checkpoint
        raise Left("a worker was told to leave")


def run_rank(job: dict[str, Any]) -> None:
    """Run ``job["loop"](context, job["spec"])``; the output of rank 0 goes to the run's log."""
    os.chdir(job["workspace"])
    torch.set_num_threads(job["threads"])
    with ExitStack() as opened:
        context = RayContext(opened, job["place"])
        if context.rank == 0:
            log = opened.enter_context(Path(job["log"]).open("a", buffering=1))
            opened.enter_context(redirect_stdout(log))
        opened.enter_context(fastest_attention())
        job["loop"](context, job["spec"])


class Failures(UserCallback):
    """Failure policy: Ray restarts lost workers, but bad input and an outage end the run at once.

    Bad input would fail again, and the flow itself waits for the end of an outage.
    """

    def __init__(self, log: Path) -> None:
        self.log = log

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        for failure in worker_exceptions.values():
            cause = original(failure)
            if isinstance(cause, InputError):
                raise cause
        lost = ", ".join(f"rank {rank} ({summary(e)})" for rank, e in sorted(worker_exceptions.items()))
        with self.log.open("a") as log:
            log.write(f"lost {lost}; continuing from the newest checkpoint if attempts are left\n")


def original(failure: BaseException) -> BaseException:
    """Return the exception that the loop raised, without Ray's wrappers."""
    return failure._base_exc if isinstance(failure, UserExceptionWithTraceback) else failure


def summary(failure: BaseException) -> str:
    """Return one line about a rank's failure."""
    cause = original(failure)
    return f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}" if str(cause) else repr(cause)

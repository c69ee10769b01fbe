"""Executor on ranks started by torchrun: ``torchrun --nproc-per-node 2 -m infra.launch train``.

Rank 0 runs the stage; the others wait until it starts a training. All share one file system. A lost rank ends the
others; ``torchrun --max-restarts`` restarts all of them, and they resume from the newest checkpoint.
"""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from rcm_kernels.plain import fastest_attention

from infra.executors.local import LocalContext, LocalExecutor, backend, numbers_of, on_threads
from infra.executors.preemption import notice
from infra.state import hold
from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.execution import Item, Result, TrainJob

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOOK_SECONDS = 0.1


def is_rank() -> bool:
    """Return whether this process is a rank, judged by torchrun's environment variables."""
    return all(name in os.environ for name in VARIABLES)


class TorchrunExecutor:
    """``rcm_core.execution.Executor`` over the ranks of torchrun; ``map`` stays on rank 0."""

    def __init__(self, workspace: Path) -> None:
        if not is_rank():
            raise InputError(
                f"RCM_EXECUTOR = torchrun expects {', '.join(VARIABLES)} in the environment; start it as"
                " `torchrun --nproc-per-node 2 -m infra.launch train`"
            )
        self._local = LocalExecutor(workspace)
        self.state_root = self._local.state_root
        store, self.rank, self.world = next(dist.rendezvous("env://"))
        # torchrun's store outlives the ranks that it restarts
        self._store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        self._jobs = 0
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend(), store=self._store, rank=self.rank, world_size=self.world)

    def __enter__(self) -> TorchrunExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rank == 0:
            self._say(None)
        dist.destroy_process_group()

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], label: str, *, device: str = "cpu"
    ) -> Iterator[Result]:
        return self._local.map(function, items, label, device=device)

    def train(self, job: TrainJob) -> None:
        most = numbers_of(job.workers)[-1]
        if self.world not in numbers_of(job.workers):
            raise InputError(
                f"workers = {most}, but torchrun has started {self.world}; start it with {most} processes"
                f" (--nnodes x --nproc-per-node), or set workers: {self.world}"
            )
        resolve_device(job.device)
        with hold(job.state):
            (job.state / "local").mkdir(parents=True, exist_ok=True)
            self._say(job)
            self._run(job)

    def follow(self) -> None:
        """Join every training that rank 0 starts, until its stage ends; called on the other ranks."""
        while job := self._hear():
            self._run(job)

    def _run(self, job: TrainJob) -> None:
        folder = job.state / "local"
        try:
            with on_threads(job.threads), fastest_attention(), notice() as told:
                job.loop(LocalContext(folder, self.rank, self.world, told), job.spec)
        except Exception as error:
            if self._store.add("failures", 1) > 1:  # another rank's error, or its loss
                raise SystemExit(1) from error
            raise

    def _say(self, job: TrainJob | None) -> None:
        self._store.set(f"job {self._jobs}", pickle.dumps(job))
        self._jobs += 1

    def _hear(self) -> Any:
        # poll, because a wait inside the store would block signals
        while not self._store.check([f"job {self._jobs}"]):
            time.sleep(LOOK_SECONDS)
        self._jobs += 1
        return pickle.loads(self._store.get(f"job {self._jobs - 1}"))

"""Asynchronous checkpoints: a thread writes one at a time while training continues."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_flatten, tree_unflatten

from rcm_core.execution import TrainContext
from rcm_core.training.checkpointing import checkpoint


class Writer:
    """Copy the state to the CPU; a thread writes it below ``place`` and reports it to ``context``.

    Every rank has a writer, and all begin a checkpoint together. Writers use their own process group, so that
    training can use its group at the same time.
    """

    def __init__(self, context: TrainContext, place: Path) -> None:
        self.context, self.place = context, place
        self._group = dist.new_group(backend="gloo") if context.world > 1 else None
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._pending: Future[None] | None = None
        self._open = ExitStack()

    def __enter__(self) -> Writer:
        self._open.enter_context(
            checkpoint.alone_if_one()
        )  # in the main thread: warning filters are per process
        self._pool = self._open.enter_context(ThreadPoolExecutor(1, thread_name_prefix="checkpoint"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if kind is None:
                self.wait()
            elif self._pending is not None:
                wait([self._pending])  # without its error, so that the training's own error is raised

    def begin(self, state: dict[str, Any], progress: dict[str, Any], step: int) -> None:
        """Wait for the previous checkpoint, copy ``state`` and ``progress``, and return; a collective."""
        self.wait()
        copied = self._copy_to_cpu(state)
        self._pending = self._pool.submit(self._write, copied, deepcopy(progress), step)

    def _copy_to_cpu(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copy ``state`` to the CPU; quantised moments are copied here because DCP's stager does not support them."""
        leaves, shape = tree_flatten(state)
        quantised = {i: _copy(leaf) for i, leaf in enumerate(leaves) if _is_quantised(leaf)}
        plain = tree_unflatten([None if i in quantised else leaf for i, leaf in enumerate(leaves)], shape)
        staged = self._stager.stage(plain)
        assert isinstance(staged, dict)  # not a future: staging is synchronous
        leaves, shape = tree_flatten(staged)
        whole: dict[str, Any] = tree_unflatten(
            [quantised.get(i, leaf) for i, leaf in enumerate(leaves)], shape
        )
        return whole

    def check(self) -> None:
        """Raise the thread's error if it failed."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the current checkpoint is complete; raise the thread's error if it failed."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, state: dict[str, Any], progress: dict[str, Any], step: int) -> None:
        self.place.mkdir(parents=True, exist_ok=True)  # the folder whose free space was checked
        with TemporaryDirectory(dir=self.place, prefix="writing-") as name:
            checkpoint.save(Path(name), state, progress, self.context.rank, self._group)
            self.context.report({"step": float(step)}, Path(name), step)


def _is_quantised(value: Any) -> bool:
    local = value._local_tensor if isinstance(value, DTensor) else value
    return isinstance(local, Tensor) and is_traceable_wrapper_subclass(local)


def _copy(value: Any) -> Tensor:
    local: Any = value._local_tensor if isinstance(value, DTensor) else value
    names, facts = local.__tensor_flatten__()
    inner = {name: getattr(local, name).detach().to("cpu", copy=True) for name in names}
    copy: Tensor = type(local).__tensor_unflatten__(inner, facts, local.shape, local.stride())
    if isinstance(value, DTensor):
        return DTensor(copy, value._spec, requires_grad=False)  # type: ignore[no-untyped-call]
    return copy

"""The in-process executor for the comparison: trainings are measured, the teacher is sampled once for all runs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.comparison.measurements import PLACE, Clock, measure
from experiments.comparison.workspaces import digest
from infra.executors.local import LocalExecutor
from rcm_core.execution import Item, Result, TrainContext, TrainJob
from rcm_core.samplers.jobs import Job
from rcm_core.storage.files import atomic
from rcm_core.training import distill

SAMPLES = "samples"
"""The label under which evaluate samples."""
LATE = ("diffusers.models.transformers.transformer_wan", "pandas", "pyarrow.parquet")
"""Modules that a training imports when it needs them. Their code is not counted as memory of the training."""


class MeasuringExecutor(LocalExecutor):
    """``rcm_core.execution.Executor``; live state lies in the workspace."""

    def __init__(self, workspace: Path, cache: Path, teacher: str) -> None:
        """``cache`` keeps the samples of the teacher of content hash ``teacher``."""
        super().__init__(workspace)
        self.state_root = workspace / "state"
        self._cache, self._teacher = cache, teacher

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], label: str, *, device: str = "cpu"
    ) -> Iterator[Result]:
        if label != SAMPLES:
            yield from super().map(function, items, label, device=device)
            return
        for item in items:
            yield self._sample(function, item, device)

    def _sample(self, function: Callable[[Any], Any], item: Any, device: str) -> Any:
        """What evaluate's function makes of the item; pixels of the teacher from the cache if they are there."""
        name, job, kept, _ = item
        if job.network is not None:
            return next(super().map(function, [item], SAMPLES, device=device))
        path = self._cache / f"{self._key(job)}.safetensors"
        if not path.is_file():
            made: Tensor = next(super().map(function, [item], SAMPLES, device=device))[2]
            with atomic(path) as temporary:
                save_file({"pixels": made.contiguous()}, temporary)
        pixels = load_file(path)["pixels"]  # which is what the judges of these benchmarks look at
        return name, job.ids[0], pixels, pixels[:kept].clone()

    def _key(self, job: Job) -> str:
        whole = dataclasses.asdict(job) | {"device": None}
        whole["teacher"] |= {"folder": self._teacher}
        return digest(whole)

    def train(self, job: TrainJob) -> None:
        super().train(dataclasses.replace(job, loop=measured_loop) if job.loop is distill.loop else job)


def measured_loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """``distill.loop``, measured into the workspace."""
    for module in LATE:
        importlib.import_module(module)
    clock = Clock(context)
    trainer = distill.assemble(clock, spec)
    measure(trainer, clock, Path(spec["workspace"]) / PLACE, Path(spec["state"]).name)
    distill.finish(trainer, spec)

"""In-process executor of the comparison: it measures trainings and samples the teacher once for all runs."""

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
"""Label of evaluate's sampling jobs."""
LATE = ("diffusers.models.transformers.transformer_wan", "pandas", "pyarrow.parquet")
"""Modules that a training imports lazily. They are imported first, so that they do not count as its memory."""


class MeasuringExecutor(LocalExecutor):
    """``rcm_core.execution.Executor`` with the live state in the workspace."""

    def __init__(self, workspace: Path, cache: Path, teacher: str) -> None:
        """Keep the samples of the teacher with content hash ``teacher`` in ``cache``."""
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
        """Return the result of evaluate's function for the item; the teacher's pixels come from the cache if there."""
        name, job, kept, _ = item
        if job.network is not None:
            return next(super().map(function, [item], SAMPLES, device=device))
        path = self._cache / f"{self._key(job)}.safetensors"
        if not path.is_file():
            made: Tensor = next(super().map(function, [item], SAMPLES, device=device))[2]
            with atomic(path) as temporary:
                save_file({"pixels": made.contiguous()}, temporary)
        pixels = load_file(path)["pixels"]  # the judges of these benchmarks use only pixels
        return name, job.ids[0], pixels, pixels[:kept].clone()

    def _key(self, job: Job) -> str:
        whole = dataclasses.asdict(job) | {"device": None}
        whole["teacher"] |= {"folder": self._teacher}
        return digest(whole)

    def train(self, job: TrainJob) -> None:
        super().train(dataclasses.replace(job, loop=measured_loop) if job.loop is distill.loop else job)


def measured_loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """Run ``distill.loop`` and write its measurements into the workspace."""
    for module in LATE:
        importlib.import_module(module)
    clock = Clock(context)
    trainer = distill.assemble(clock, spec)
    measure(trainer, clock, Path(spec["workspace"]) / PLACE, Path(spec["state"]).name)
    distill.finish(trainer, spec)

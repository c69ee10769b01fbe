"""One training iteration in terms of roles, losses and gradients; independent of the method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from rcm_core.errors import InputError
from rcm_core.execution import TrainContext
from rcm_core.monitoring.health import Health, next_rung
from rcm_core.networks.denoiser import Denoiser
from rcm_core.protocols import Batch, Method, Networks
from rcm_core.rng import generator
from rcm_core.training.curves import Curves
from rcm_core.training.loop_settings import LoopSettings
from rcm_core.training.parallel.collectives import sum_over_ranks
from rcm_core.training.parameter_updates import ParameterUpdater


class Source(Protocol):
    """Batches addressed by step and part."""

    def batch(self, step: int, part: int, size: int) -> Batch:
        """Return ``size`` samples: part ``part`` of the global batch of ``step``.

        ``part`` is (accumulation step x world + rank) // size of a context-parallel group.
        """
        ...


@dataclass(kw_only=True)
class Stepper:
    """Train ``modules`` (target networks included) by ``method``, which sees them in ``networks``."""

    modules: Mapping[str, nn.Module]
    networks: Networks
    build_method: Callable[[str], Method]
    source: Source
    settings: LoopSettings
    context: TrainContext
    device: torch.device
    tangent: str = "exact"
    tangent_fallback: bool = False
    student_updates: int = 0
    leaving: bool = False
    """True if any rank had a preemption notice when the last step ended."""

    def __post_init__(self) -> None:
        """Create optimisers, EMAs, method and health as of step 0."""
        self.size = self.settings.per_rank(self.context.world)
        self.health = Health(self.settings.max_nonfinite, self.settings.health)
        self.method = self.build_method(self.tangent)
        self.updater = ParameterUpdater(
            self.modules, self.method.requirements, self.settings, self.context.world
        )
        self.optimisers, self.ema = self.updater.optimisers, self.updater.ema

    @property
    def student(self) -> Denoiser:
        """The student network."""
        student = self.modules["student"]
        assert isinstance(student, Denoiser)
        return student

    def train_step(self, step: int) -> dict[str, float]:
        """Run one iteration: gradients of all parts, the health check, optimiser steps of the updated roles."""
        roles: set[str] = set()
        window = Curves()
        shared = self.settings.context  # number of ranks with the same samples
        for part in range(self.settings.accumulate):
            index = (part * self.context.world + self.context.rank) // shared
            batch = self.source.batch(step, index, self.size)
            rng = generator(self.settings.seed, "train", step, index, device=self.device)
            for update in self.method.updates(self.networks, batch, step, rng):
                (update.loss / self.settings.accumulate).backward()  # type: ignore[no-untyped-call]
                roles.update(update.roles)
                window.add({name: float(value) for name, value in update.scalars.items()})
        names = sorted(window.sums)
        world = self.context.world
        notice = float(self.context.leaving())
        *sums, leaving = sum_over_ranks([*(window.sums[n] for n in names), notice], world, self.device)
        self.leaving = leaving > 0
        total = {"nonfinite": 0.0} | dict(zip(names, sums))
        total["nonfinite"] /= shared
        rows = self.settings.batch * self.method.requirements.points_per_sample
        wrong = self.health.count(step, int(total["nonfinite"]), rows)
        if wrong is not None and not self._step_down(step, wrong):
            raise InputError(wrong)
        moves = self.method.student_update(step)
        norms = self.updater.move(step, sorted(roles), moves)
        self.student_updates += moves
        means = {n: v if n == "nonfinite" else v / (window.counts[n] * world) for n, v in total.items()}
        spikes = self.health.watch(means | norms)
        unsteady = self.health.unsteady(step)
        if unsteady is not None:
            self._step_down(step, unsteady)
        return means | norms | {"spikes": float(spikes)}

    def _step_down(self, step: int, reason: str) -> bool:
        """Switch to the next more robust tangent from the next step on.

        Return False if none is allowed or left, or if the method has no tangent.
        """
        rung = next_rung(self.tangent)
        if not self.tangent_fallback or rung is None or self.build_method(rung) == self.method:
            return False
        self._say(f"{reason}; stepping down from {self.tangent} to {rung}")
        self.health.step_down(step, self.tangent, rung)
        self.tangent = rung
        self.method = self.build_method(rung)
        return True

    def _say(self, line: str) -> None:
        if self.context.rank == 0:
            print(line, flush=True)

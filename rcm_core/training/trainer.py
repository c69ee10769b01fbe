"""The training loop: it knows roles, losses and steps, and nothing of any method."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from torch import nn

from rcm_core.config import samples_per_rank
from rcm_core.denoiser import Denoiser
from rcm_core.errors import InputError
from rcm_core.health import Health, next_rung
from rcm_core.protocols import Batch, Method, TrainContext, Velocity
from rcm_core.rng import generator
from rcm_core.training import checkpoint
from rcm_core.training.ema import PowerEMA
from rcm_core.training.log import Curves
from rcm_core.training.muon import Muon
from rcm_core.training.parallel import gradient_norm, sum_over_ranks


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs of the parameters; ``batch`` counts samples over ranks and accumulation steps."""

    iterations: int
    batch: int
    accumulate: int
    lr: Mapping[str, float]
    lr_warmup: int
    lr_decay: bool
    """Cosine to zero over the run."""
    betas: tuple[float, float]
    weight_decay: float
    ema_lengths: tuple[float, ...]
    candidate_every: int
    checkpoint_every: int
    log_every: int
    max_nonfinite: float
    seed: int
    muon: bool = False
    """Matrices of the blocks by Muon instead of AdamW."""

    def per_rank(self, world: int) -> int:
        """Samples per rank and accumulation step; InputError if the batch does not divide."""
        return samples_per_rank(self.batch, world, self.accumulate, "batch")

    def optimiser(self, role: str, network: nn.Module) -> torch.optim.Optimizer:
        """AdamW for the parameters of ``role``, or Muon."""
        if self.muon:
            return Muon(network, self.lr[role], self.betas, self.weight_decay)
        return torch.optim.AdamW(
            network.parameters(),
            lr=self.lr[role],
            betas=self.betas,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def lr_factor(self, step: int) -> float:
        """What the learning rates are multiplied by at ``step``."""
        warm = min(1.0, (step + 1) / self.lr_warmup) if self.lr_warmup else 1.0
        if not self.lr_decay:
            return warm
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.iterations))


class Source(Protocol):
    """Batches addressed by where we are."""

    def batch(self, step: int, part: int, size: int) -> Batch:
        """``size`` samples: part ``part`` of ``step``'s global batch (part = accumulation step x world + rank)."""
        ...


@dataclass
class Trainer:
    """Trains ``nets`` by ``method``; ``velocities`` is what the method sees (teacher guided, frozen)."""

    nets: Mapping[str, Denoiser]
    velocities: Mapping[str, Velocity]
    build_method: Callable[[str], Method]
    source: Source
    settings: LoopSettings
    context: TrainContext
    device: torch.device
    candidates: Path
    tangent: str = "exact"
    tangent_fallback: bool = False
    step: int = 0
    student_updates: int = 0
    curves: Curves = field(default_factory=Curves)

    def __post_init__(self) -> None:
        """Optimisers, EMA and method; restores the newest checkpoint of this run if there is one."""
        self.size = self.settings.per_rank(self.context.world)
        self.health = Health(self.settings.max_nonfinite)
        self.method = self.build_method(self.tangent)
        self.optimisers = {role: self.settings.optimiser(role, net) for role, net in self._trained().items()}
        self.ema = PowerEMA(self.nets["student"].network, self.settings.ema_lengths)
        folder = self.context.resume()
        if folder is not None:
            self._restore(folder)

    def _trained(self) -> dict[str, nn.Module]:
        return {role: self.nets[role].network for role in sorted(self.method.roles)}

    def _restore(self, folder: Path) -> None:
        progress = checkpoint.load(folder, self._trained(), self.optimisers, self.ema)
        self.step, self.student_updates = progress["step"], progress["student_updates"]
        self.curves = Curves(**progress["curves"])
        self.health.counts.extend((k, n) for k, n in progress["health"])
        self.tangent = progress["tangent"]
        self.method = self.build_method(self.tangent)
        if self.context.rank == 0:
            print(f"resumed at step {self.step} of {self.settings.iterations}", flush=True)

    def run(self) -> None:
        """Trains to the end: logs, checkpoints and candidates at their intervals."""
        last, started = self.step, time.perf_counter()
        while self.step < self.settings.iterations:
            self.curves.add(self.train_step(self.step))
            self.step += 1
            final = self.step == self.settings.iterations
            if final or self.step % self.settings.log_every == 0:
                scalars = self.curves.close(self.step)
                if self.context.rank == 0:
                    rate = (self.step - last) * self.settings.batch / (time.perf_counter() - started)
                    print(self.curves.line(self.step, self.settings.iterations, rate, scalars), flush=True)
                last, started = self.step, time.perf_counter()
            if final or self.step % self.settings.candidate_every == 0:
                student = self.nets["student"].network
                write_candidates(self.candidates, self.step, student, self.ema, self.context.rank)
            if final or self.step % self.settings.checkpoint_every == 0:
                self.save()

    def train_step(self, step: int) -> dict[str, float]:
        """One iteration: gradients of all parts, the health check, the optimisers of the roles that moved."""
        roles: set[str] = set()
        window = Curves()
        for part in range(self.settings.accumulate):
            index = part * self.context.world + self.context.rank
            batch = self.source.batch(step, index, self.size)
            rng = generator(self.settings.seed, "train", step, index, device=self.device)
            for update in self.method.updates(self.velocities, batch, step, rng):
                (update.loss / self.settings.accumulate).backward()  # type: ignore[no-untyped-call]
                roles.add(update.role)
                window.add({name: float(value) for name, value in update.scalars.items()})
        names = sorted(window.sums)
        sums = sum_over_ranks([window.sums[n] for n in names], self.context.world, self.device)
        total = {"nonfinite": 0.0} | dict(zip(names, sums))
        self._check_health(step, int(total["nonfinite"]))
        self._apply(step, sorted(roles))
        world = self.context.world
        return {n: v if n == "nonfinite" else v / (window.counts[n] * world) for n, v in total.items()}

    def _check_health(self, step: int, nonfinite: int) -> None:
        self.health.record(nonfinite, self.settings.batch)
        if not self.health.exceeded:
            return
        rung = next_rung(self.tangent)
        if not self.tangent_fallback or rung is None:
            raise InputError(self.health.sentence(step))
        if self.context.rank == 0:
            print(f"{self.health.sentence(step)}; stepping down from {self.tangent} to {rung}", flush=True)
        self.tangent = rung
        self.method = self.build_method(rung)
        self.health.counts.clear()

    def _apply(self, step: int, roles: list[str]) -> None:
        refuse_nonfinite({role: self.nets[role].network for role in roles}, step)
        for role in roles:
            for group in self.optimisers[role].param_groups:
                group["lr"] = self.settings.lr[role] * self.settings.lr_factor(step)
            self.optimisers[role].step()
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        if self.method.student_update(step):
            self.student_updates += 1
            self.ema.update(self.nets["student"].network)

    def save(self) -> None:
        """Reports a full-state checkpoint; every rank together."""
        self.candidates.parent.mkdir(parents=True, exist_ok=True)  # where space was asked for
        with TemporaryDirectory(dir=self.candidates.parent, prefix="writing-") as name:
            folder = Path(name)
            state = checkpoint.gather(self._trained(), self.optimisers, self.ema)
            progress: dict[str, Any] = {
                "step": self.step,
                "student_updates": self.student_updates,
                "tangent": self.tangent,
                "health": list(self.health.counts),
                "curves": self.curves.state(),
            }
            checkpoint.save(folder, state, progress, self.context.rank)
            self.context.report({"step": float(self.step)}, folder, self.step)


def refuse_nonfinite(networks: Mapping[str, nn.Module], step: int) -> None:
    """InputError if a gradient is not finite; a collective under FSDP."""
    for role, network in networks.items():
        if not math.isfinite(gradient_norm(network)):
            raise InputError(
                f"step {step}: the gradient of the {role} is not finite; no weight was changed;"
                " lower train.lr or raise method.warmup"
            )


def write_candidates(root: Path, step: int, network: nn.Module, ema: PowerEMA, rank: int) -> None:
    """Each EMA length's network, in diffusers layout, as ``root/step_000300-ema_0.05/transformer``."""
    for length in ema.exponents:
        weights = checkpoint.full_tensors({**network.state_dict(), **ema.weights(length)})
        if rank == 0:
            folder = root / f"step_{step:06d}-ema_{length:g}" / "transformer"
            checkpoint.write_network(folder, network, weights)

"""The training loop with a simple test method on the tiny run's network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infra.executors.local import LocalContext
from rcm_core.config.sections import HealthSection
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.protocols import FIELDS, Batch, Examples, MethodRequirements, Networks, TargetUpdate, Update
from rcm_core.registry import find_family
from rcm_core.rng import generator
from rcm_core.training.loop_settings import LoopSettings
from rcm_core.training.probe import Probe
from rcm_core.training.trainer import Trainer

CPU = torch.device("cpu")
SETTINGS = LoopSettings(
    iterations=6,
    batch=4,
    accumulate=1,
    lr={"student": 1e-3, "fake": 1e-3},
    clip={},
    lr_warmup={},
    lr_decay=False,
    betas=(0.9, 0.99),
    weight_decay=0.0,
    ema_lengths=(0.1,),
    candidate_every=100,
    checkpoint_every=2,
    log_every=100,
    max_nonfinite=0.005,  # 2 samples in 100 steps
    seed=0,
)
QUIET = HealthSection(probe_every=2, probe_samples=8, drift=None, collapse=None, patience=None, spike=None)
"""Health settings with probes, but without any rule that stops the training."""


class Pull:
    """A method that pulls all weights of the student, or of the fake score, towards the number of the step.

    ``bad``: number of non-finite samples, a function of tangent and step. ``norm``: the tangent's norm. ``scale``:
    factor of the loss, a function of the step.
    """

    def __init__(
        self,
        tangent: str,
        bad: Callable[[str, int], float] = lambda *_: 0.0,
        follows: tuple[TargetUpdate, ...] = (),
        norm: Callable[[str, int], float] | None = None,
        scale: Callable[[int], float] = lambda _: 1.0,
    ) -> None:
        self.tangent, self.bad, self.norm, self.scale = tangent, bad, norm, scale
        self.requirements = MethodRequirements(
            frozenset({"student", "fake"}), frozenset({"x0"}), follows=follows
        )

    def student_update(self, step: int) -> bool:
        return step % 2 == 0

    def loss(self, network: Denoiser, batch: Batch) -> Tensor:
        return torch.stack([(p - batch.x0.mean()).square().mean() for p in network.parameters()]).sum()

    def updates(self, networks: Networks, batch: Batch, step: int, rng: Any) -> Iterator[Update]:
        role = "student" if self.student_update(step) else "fake"
        loss = self.loss(getattr(networks, FIELDS[role]), batch) * self.scale(step)
        scalars = {"loss": loss.detach(), "nonfinite": torch.tensor(self.bad(self.tangent, step))}
        if self.norm is not None:
            scalars["tangent_norm"] = torch.tensor(self.norm(self.tangent, step))
        yield Update((role,), loss, scalars)


class Brighten(Pull):
    """A method that pulls only the last bias in every step, so samples only become brighter or darker."""

    def __init__(self, tangent: str) -> None:
        super().__init__(tangent)
        self.requirements = MethodRequirements(frozenset({"student"}), frozenset({"x0"}))

    def student_update(self, step: int) -> bool:
        return True

    def loss(self, network: Denoiser, batch: Batch) -> Tensor:
        still = sum(p.sum() for p in network.parameters())  # every weight has a gradient, as in any training
        return (network.network.proj_out.bias - 100).square().mean() + 0 * still


class Steps:
    """A source whose data are the numbers of step and part."""

    def batch(self, step: int, part: int, size: int) -> Batch:
        return Batch({}, {}, torch.full((size, 1), float(step + part)))


def trainer(folder: Path, state: Path, method: Callable[[str], Pull], **settings: Any) -> Trainer:
    """Return a new trainer, or one resumed from ``state``; ``settings`` are those of the loop, not of the trainer."""
    requirements = method("exact").requirements
    roles = sorted(requirements.roles | {f.target for f in requirements.follows})
    nets: dict[str, Denoiser] = {role: load_denoiser(folder, find_family("wan")) for role in roles}
    own = {k: settings.pop(k) for k in ("tangent_fallback", "probe") if k in settings}
    return Trainer(
        modules=nets,
        networks=Networks.by_role(nets),
        build_method=method,  # type: ignore[arg-type]
        source=Steps(),
        settings=replace(SETTINGS, **settings),
        context=LocalContext(state),
        device=CPU,
        candidates=state / "candidates",
        **own,
    )


def probe(every: int = 2, count: int = 8) -> Probe:
    """Return a probe on synthetic latents and conditions that fit the tiny run's network."""
    rng = generator("held")
    x0 = torch.randn(count, 1, 1, 8, 8, generator=rng)
    return Probe(Examples(x0, {"text": torch.randn(count, 4, 32, generator=rng)}), 0, every, CPU, 1)


def weights(made: Trainer, role: str = "student") -> dict[str, Tensor]:
    """Return a copy of the weights of ``role``."""
    return {k: v.clone() for k, v in made.modules[role].network.state_dict().items()}


def equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Return whether ``a`` and ``b`` are bitwise equal."""
    return all(torch.equal(a[k], b[k]) for k in a)


def healthy(tangent: str) -> Pull:
    """Return a method whose tangents and losses are healthy."""
    return Pull(tangent)

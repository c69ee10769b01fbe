"""Parameter updates after backward: clipping, optimiser steps, the student's EMAs and target networks.

``lr_factor`` of ``loop_settings`` is the learning-rate schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from rcm_core.errors import InputError
from rcm_core.protocols import MethodRequirements
from rcm_core.training.ema import PowerEMA
from rcm_core.training.loop_settings import LoopSettings
from rcm_core.training.parallel.collectives import (
    average_gradients,
    gradient_norm,
    move_towards,
    reshard,
    scale_gradients,
)


class ParameterUpdater:
    """Optimisers of the ``modules`` that a method trains, and the EMAs of the student."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        requirements: MethodRequirements,
        settings: LoopSettings,
        world: int,
    ) -> None:
        self.modules, self.follows, self.settings, self.world = modules, requirements.follows, settings, world
        self.optimisers = {
            role: settings.optimiser(role, modules[role]) for role in sorted(requirements.roles)
        }
        self.ema = PowerEMA(modules["student"], settings.ema_lengths)
        self.updates = dict.fromkeys(self.optimisers, 0)
        """Number of optimiser updates by role; part of a checkpoint."""

    def move(self, step: int, roles: Sequence[str], student_update: bool) -> dict[str, float]:
        """Update ``roles``, EMAs and target networks; return the student's gradient norm before clipping. A collective.

        InputError, before any weight changes, if a gradient is not finite.
        """
        for net in self.modules.values():
            reshard(net)
        norms = {role: self._finite_norm(role, step) for role in roles}
        for role, norm in norms.items():
            limit = self.settings.clip.get(role, math.inf)
            if norm > limit:
                scale_gradients(self.modules[role], limit / norm)
            rate = self.settings.lr[role] * self.settings.lr_factor(role, step, self.updates[role])
            for group in self.optimisers[role].param_groups:
                if isinstance(group["lr"], Tensor):  # a compiled optimiser's
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            self.optimisers[role].step()
            self.updates[role] += 1
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        if student_update:
            self.ema.update(self.modules["student"])
        for follow in self.follows:
            if follow.after in roles:
                follower, leader = (
                    list(self.modules[n].parameters()) for n in (follow.target, follow.source)
                )
                move_towards(follower, leader, follow.rate)
        return {"gradient_norm": norms["student"]} if "student" in norms else {}

    def _finite_norm(self, role: str, step: int) -> float:
        average_gradients(self.modules[role], self.world)
        norm = gradient_norm(self.modules[role])
        if not math.isfinite(norm):
            raise InputError(
                f"training stopped at step {step}: the gradient of the {role} is not finite. No weight was changed;"
                " lower train.lr or raise method.warmup"
            )
        return norm

"""TBCM: continuous-time consistency on the teacher's trajectories, without images (arXiv 2511.20410)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from rcm_core.config.types import Count, Positive, Share
from rcm_core.jvp import TangentKind
from rcm_core.losses.consistency import WarmupForm
from rcm_core.objectives.base import unit_noise
from rcm_core.objectives.consistency import Consistency, States, Weighting, consistency_term, head_of, ramp
from rcm_core.objectives.guidance_embedding import GuidanceSection, with_scale
from rcm_core.protocols import Batch, Condition, MethodRequirements, Networks, Update, require
from rcm_core.samplers.rollout import Scheme, record_trajectory, route_angles


class Config(GuidanceSection):
    """``method:`` of ``method=tbcm``; ``train.batch`` counts prompts, each with ``pairs`` points."""

    trajectories: Literal["online", "recorded"]
    """Source of trajectories. online: simulated in every iteration from prompts; recorded: the trajectories stage's."""
    trajectory_steps: Annotated[int, Field(ge=2)]
    """Number of teacher steps in an online trajectory."""
    scheme: Scheme
    shift: Positive
    """Time shift of the reference grid, applied twice as released (E47); small problems need 1 or less."""
    pairs: Count
    """Number of training points per trajectory; never its first point, which has no signal."""
    p_mean: float
    """Mean of ln tan t ~ N(p_mean, p_std^2), for scheme = log_normal."""
    p_std: Positive
    degenerate_below: Positive | None
    """Contrast (variance within channels) m below which a trajectory's final image counts as degenerate: it is dropped
    with probability 1 - m / degenerate_below; null keeps all."""
    warmup: Annotated[int, Field(ge=0)]
    warmup_form: WarmupForm
    tangent_anneal_start: Annotated[int, Field(ge=0)] | None
    """Iteration at which the weight r of the tangent's unstable part starts to anneal; null: never."""
    tangent_anneal_steps: Count
    tangent_anneal_to: Share
    """Value of r after ``tangent_anneal_steps``."""
    weighting: Weighting
    tangent_constant: Positive = 0.1
    """Constant c of the tangent's normalisation (E20); the published 0.1 for data of deviation 0.5 is 0.2 here."""
    consistency_weight: Positive

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.trajectories == "online" and self.pairs > self.trajectory_steps - 1:
            raise ValueError(
                f"pairs = {self.pairs} exceeds the {self.trajectory_steps - 1} points of a route"
            )
        if self.trajectories == "recorded" and self.guidance is not None:
            raise ValueError("recorded trajectories have the teacher's own guidance; set guidance to null")
        return self


class Points(NamedTuple):
    """Training points of every trajectory: states and velocities [pairs, B, ...], angles [pairs, B]."""

    x: Tensor
    v: Tensor
    t: Tensor
    end: Tensor


@dataclass(frozen=True)
class TBCM:
    config: Config
    tangent: TangentKind

    @property
    def requirements(self) -> MethodRequirements:
        config = self.config
        recorded = config.trajectories == "recorded"
        return MethodRequirements(
            frozenset({"student"}),
            frozenset({"condition", "routes"} if recorded else {"condition"}),
            config.embedded | head_of(config.weighting),
            guidance=config.guidance_at,
            min_trajectory_points=config.pairs + 1 if recorded else 0,
            points_per_sample=config.pairs,
        )

    def student_update(self, step: int) -> bool:  # noqa: ARG002
        return True

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        config = self.config
        condition = with_scale(config, batch.condition, len(batch.x0), rng)
        points = (
            self._stored_points(batch, rng)
            if config.trajectories == "recorded"
            else self._online(networks, batch, condition, rng)
        )
        count = len(points.x)
        keep = self._worthy(points.end, rng).repeat(count)
        x, v, t = points.x.flatten(0, 1), points.v.flatten(0, 1), points.t.flatten()
        repeated = {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in condition.items()}
        how = Consistency(
            self.tangent,
            self._r(step),
            config.warmup_form,
            weighting=config.weighting,
            constant=config.tangent_constant,
        )
        term = consistency_term(networks, States(x, t, v, keep), repeated, how)
        loss = config.consistency_weight * term.loss
        yield Update(("student",), loss, {"loss": loss.detach(), **term.scalars})

    def _online(self, networks: Networks, batch: Batch, condition: Condition, rng: torch.Generator) -> Points:
        config = self.config
        noise = unit_noise(rng, batch.x0)
        angles = route_angles(
            config.scheme, config.trajectory_steps, config.shift, config.p_mean, config.p_std, rng
        ).to(noise.device)
        walk = record_trajectory(require(networks.guided_teacher), noise, angles, condition)
        chosen = self._choose_points(len(angles), rng).to(noise.device)
        t = walk.t[chosen][:, None].expand(-1, len(noise))
        return Points(walk.x[chosen], walk.F[chosen], t, walk.end)

    def _stored_points(self, batch: Batch, rng: torch.Generator) -> Points:
        assert batch.route is not None  # guaranteed by the requirements
        x, t, v = batch.route
        chosen = self._choose_points(x.shape[1], rng).to(x.device)
        return Points(
            x[:, chosen].transpose(0, 1), v[:, chosen].transpose(0, 1), t[:, chosen].T.double(), batch.x0
        )

    def _choose_points(self, steps: int, rng: torch.Generator) -> Tensor:
        """Return the indices of the training points, never the first."""
        order = torch.randperm(steps - 1, generator=rng, device=rng.device) + 1
        return order[: self.config.pairs].sort().values

    def _worthy(self, end: Tensor, rng: torch.Generator) -> Tensor:
        """Return ``[B]`` which trajectories to train on: drops flat images, as the released code drops black ones."""
        threshold = self.config.degenerate_below
        if threshold is None:
            return torch.ones(len(end), dtype=torch.bool, device=end.device)
        contrast = end.reshape(*end.shape[:2], -1).var(2, unbiased=False).mean(1)
        draws = torch.rand(len(end), generator=rng, device=rng.device).to(end.device)
        return draws < contrast / threshold

    def _r(self, step: int) -> float:
        """Return r at ``step``: linear warm-up, then annealing."""
        config, r = self.config, ramp(step, self.config.warmup)
        if config.tangent_anneal_start is None or step < config.tangent_anneal_start:
            return r
        share = ramp(step - config.tangent_anneal_start, config.tangent_anneal_steps)
        return r * (1 - share) + config.tangent_anneal_to * share


def build(config: Config, tangent: TangentKind) -> TBCM:
    return TBCM(config, tangent)

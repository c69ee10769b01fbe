"""Every method on a 2-D mixture of six modes with an exact teacher: one-step samples become the data."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from gaussians import Perceptron, energy_distance, six_modes
from presets import EMBEDDED, preset
from torch import Tensor, nn

from rcm_core.config.base import check
from rcm_core.diffusion.trigflow import diffuse
from rcm_core.networks.discriminator import Heads
from rcm_core.protocols import Batch, Examples, Method, Networks, TeacherTrajectory
from rcm_core.registry import find
from rcm_core.rng import generator
from rcm_core.samplers.few_step import Kind, sample_student
from rcm_core.samplers.rollout import record_trajectory, reference_route
from rcm_core.training.parallel.collectives import move_towards

MIXTURE = six_modes()
REAL = MIXTURE.sample(2000, generator("real"))
LR = 1e-3
BATCH = 256
ROUTES = 2048
NARROW = {"p_mean": 0.0, "p_std": 1.6}
"""Time distribution for narrow modes: times around tan t = 1 and far below it matter."""

CHANGED: dict[str, dict[str, Any]] = {
    "scm": NARROW,
    "rcm": {**NARROW, "simulation_steps": 2},
    "dmd2": {"simulation_steps": 2},
    "dmd2-gan": {"simulation_steps": 2, "gan_blocks": [1]},
    "dcm": {"shift": 1.0},
    "lcm": {"shift": 1.0, "skip": 1},
    "meanflow": {"time_mean": 0.0, "time_std": 2.4},
    "tbcm": {"shift": 1.0},
    "cdm": {"augmentation_weight": 0.0, "rollout_steps": 4, "rollout_shift": 1.0, "rollout_low": 0.05},
    "sana_sprint": {**NARROW, "blocks": [1]},
}
"""Changes from the shipped presets, because there is no guidance and no structure at high noise; a discriminator
has one head, for convolutions are what takes long on a CPU.
"""

LARGEST = 0.030
DISTANCE = {
    "scm": 0.010, "rcm": 0.010, "dcm": 0.010, "meanflow": 0.015, "tbcm": 0.010, "kd": 0.010,
}  # fmt: skip
"""Largest energy distance of samples to data, ``LARGEST`` if a method is not named: 0.001 is that of data to data, 0.97
that of the start. Measured with one step: kd 0.003, ect 0.004, tbcm 0.004, dcm 0.004, scm 0.005, rcm 0.006,
dmd2 0.009, meanflow 0.009, cdm 0.011, lcm 0.011, sana_sprint 0.014, dmd2-gan 0.021.
"""

ITERATIONS = 1200
FEWER = {"dmd2-gan": 400, "sana_sprint": 700, "meanflow": 1000} | dict.fromkeys(
    ("scm", "rcm", "tbcm", "cdm"), 600
)
"""Iterations of slow methods: discriminators and tangents are slow per iteration, but need few of them."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def diffusion_model() -> Perceptron:
    """A network that has learned the exact velocity; students start from it."""
    net = Perceptron()
    optimiser = torch.optim.Adam(net.parameters(), lr=2 * LR)
    steps = 600
    for step in range(steps):
        rng = generator("pretrain", step)
        x0, z = MIXTURE.sample(512, rng), torch.randn(512, 2, generator=rng)
        t = torch.rand(512, generator=rng, dtype=torch.float64) * (math.pi / 2)
        x = diffuse(x0, z, t)
        loss = (net(x, t) - MIXTURE.velocity(x, t)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = 2 * LR * (1 - step / steps)
        optimiser.step()
    return net


@pytest.fixture(scope="module")
def routes() -> tuple[TeacherTrajectory, Tensor]:
    """The exact teacher's routes in 32 steps, and their ends."""
    walk = record_trajectory(
        MIXTURE.velocity, torch.randn(ROUTES, 2, generator=generator("routes")), reference_route(32, 1.0), {}
    )
    t = walk.t.expand(ROUTES, -1)
    return TeacherTrajectory(walk.x.transpose(0, 1), t, walk.F.transpose(0, 1)), walk.end


def build(name: str) -> Method:
    section = preset(name)["method"] | CHANGED.get(name, {})
    module = find("methods", section.pop("name"))
    method: Method = module.build(check(module.Config, section, name), "exact")
    return method


def networks(method: Method, start: Perceptron) -> dict[str, nn.Module]:
    """Return trained and target networks: copies of ``start``, the student with its extras."""
    requirements = method.requirements
    nets: dict[str, nn.Module] = {}
    for role in (requirements.roles | {f.target for f in requirements.follows}) - {"heads"}:
        nets[role] = Perceptron(extras=requirements.student_modules if role in ("student", "target") else ())
        nets[role].load_state_dict(start.state_dict(), strict=False)
    if "heads" in requirements.roles:
        torch.manual_seed(0)
        nets["heads"] = Heads(96, len(requirements.heads))
    return nets


def batch_of(method: Method, step: int, routes: tuple[TeacherTrajectory, Tensor]) -> Batch:
    rng = generator("distil", step)
    if "routes" in method.requirements.needs:
        rows = torch.randint(ROUTES, (BATCH,), generator=rng)
        return Batch({}, {}, routes[1][rows], route=TeacherTrajectory(*(part[rows] for part in routes[0])))
    size = BATCH // method.config.pairs if hasattr(method.config, "pairs") else BATCH  # type: ignore[attr-defined]
    real = Examples(MIXTURE.sample(size, rng), {})
    return Batch({}, {}, MIXTURE.sample(size, rng), real)


def distil(
    method: Method, start: Perceptron, routes: tuple[TeacherTrajectory, Tensor], iterations: int = ITERATIONS
) -> nn.Module:
    nets, requirements = networks(method, start), method.requirements
    optimisers = {
        role: torch.optim.Adam(nets[role].parameters(), lr=LR, betas=(0.0, 0.99))
        for role in requirements.roles
    }
    frozen = copy.deepcopy(start).requires_grad_(False)
    seen = Networks.by_role(
        nets,
        teacher=frozen if requirements.heads else MIXTURE.velocity,
        guided_teacher=MIXTURE.velocity,
        unconditional_teacher=MIXTURE.velocity,
    )
    for step in range(iterations):
        batch = batch_of(method, step, routes)
        roles: set[str] = set()
        for update in method.updates(seen, batch, step, generator("noise", step)):
            roles.update(update.roles)
            weights = [p for role in update.roles for p in nets[role].parameters()]
            update.loss.backward(inputs=weights)
        for role in roles:
            optimisers[role].param_groups[0]["lr"] = LR * min(1.0, 2 * (1 - step / iterations))
            optimisers[role].step()
            optimisers[role].zero_grad()
        for follow in requirements.follows:
            if follow.after in roles:
                pair = (list(nets[n].parameters()) for n in (follow.target, follow.source))
                move_towards(*pair, follow.rate)
    return nets["student"]


def samples(student: nn.Module, count: int, steps: int = 1, kind: Kind = "renoise") -> Tensor:
    noise = torch.randn(steps if kind == "renoise" else 1, count, 2, generator=generator("evaluation"))
    return sample_student(student, noise, {}, (math.pi / 2, 1.1)[:steps], kind)


def test_before(diffusion_model):
    assert energy_distance(samples(diffusion_model, 2000), REAL) > 0.5


FIRST = "rcm"
"""Method that also runs without the slow tests."""


@pytest.mark.parametrize(
    "name", [FIRST, *(pytest.param(name, marks=pytest.mark.slow) for name in EMBEDDED if name != FIRST)]
)
def test_one_step_samples_become_the_data_and_no_mode_is_lost(diffusion_model, routes, name):
    student = distil(build(name), diffusion_model, routes, FEWER.get(name, ITERATIONS))
    kind = preset(name)["sampler"]["kind"]
    one, two = (energy_distance(samples(student, 2000, steps, kind), REAL) for steps in (1, 2))
    nearest = torch.cdist(samples(student, 6000), MIXTURE.means).argmin(1)
    shares = torch.bincount(nearest, minlength=6) / 6000
    print(f"{name}: {one:.4f} {two:.4f} smallest share {shares.min():.3f}")
    assert max(one, two) < DISTANCE.get(name, LARGEST)
    assert shares.min() > 0.08  # an even share is 0.167

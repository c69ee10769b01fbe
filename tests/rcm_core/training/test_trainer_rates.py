"""Learning rates, clipping and epsilon of the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loops import SETTINGS, equal, healthy, trainer, weights

from rcm_core.config.load import load_params
from rcm_core.config.roles import Limits, Updates
from rcm_core.training.distill import settings_of
from rcm_core.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("group")


def test_the_rate_warms_up_and_decays(folder: Path, tmp_path: Path) -> None:
    made = trainer(folder, tmp_path, healthy, lr_warmup={"student": 4}, lr_decay=False)
    assert [made.settings.lr_factor("student", 9, n) for n in (0, 1, 3, 5)] == [0.25, 0.5, 1.0, 1.0]
    assert made.settings.lr_factor("fake", 0, 0) == 1.0
    made = trainer(folder, tmp_path, healthy, lr_warmup={}, lr_decay=True, iterations=100)
    factors = [made.settings.lr_factor("student", s, s) for s in range(100)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[-1] < 1e-3


def test_the_rate_falls_with_the_root_of_the_iteration() -> None:
    settings = replace(SETTINGS, lr_decay_from=100)
    assert {settings.lr_factor("student", step, step) for step in range(101)} == {1.0}
    for step in (101, 144, 10_000, 70_000):
        assert settings.lr_factor("student", step, 0) ** 2 * step == pytest.approx(100, rel=1e-12)
    warm, cold = replace(settings, lr_warmup={"student": 1000}), settings.lr_factor("student", 399, 399)
    assert warm.lr_factor("student", 399, 399) == pytest.approx(0.4 * cold, rel=1e-12)


def rates(made: Trainer) -> dict[str, float]:
    """Return the learning rate of each role's last update."""
    return {role: float(optimiser.param_groups[0]["lr"]) for role, optimiser in made.optimisers.items()}


def test_the_warm_up_counts_each_role_s_own_updates_and_is_resumed(folder: Path, tmp_path: Path) -> None:
    """Student and fake score alternate; each of ten iterations updates one of them."""
    settings = {"iterations": 10, "lr": {"student": 1.0, "fake": 1.0}, "lr_warmup": {"student": 4, "fake": 2}}
    made = trainer(folder, tmp_path / "whole", healthy, **settings)
    seen: dict[str, list[float]] = {"student": [], "fake": []}
    for step in range(10):
        made.train_step(step)
        role = "student" if step % 2 == 0 else "fake"
        seen[role].append(rates(made)[role])
    assert seen == {"student": [0.25, 0.5, 0.75, 1.0, 1.0], "fake": [0.5, 1.0, 1.0, 1.0, 1.0]}
    assert made.updater.updates == {"student": 5, "fake": 5}
    trainer(folder, tmp_path / "parts", healthy, **settings | {"iterations": 3}).run()
    rest = trainer(folder, tmp_path / "parts", healthy, **settings)
    assert (rest.step, rest.updater.updates) == (3, {"student": 2, "fake": 1})
    for step in range(3, 10):
        rest.train_step(step)
    assert equal(weights(rest), weights(made))
    assert equal(weights(rest, "fake"), weights(made, "fake"))


def test_only_the_roles_that_have_a_limit_are_clipped(folder: Path, tmp_path: Path) -> None:
    free, bound = (
        trainer(folder, tmp_path / str(i), healthy, clip=c) for i, c in enumerate(({}, {"fake": 1e-3}))
    )
    for made in (free, bound):
        made.train_step(0)
        made.train_step(1)
    moments = [
        {role: next(iter(o.state.values()))["exp_avg"] for role, o in made.optimisers.items()}
        for made in (free, bound)
    ]
    assert torch.equal(moments[0]["student"], moments[1]["student"])
    assert float(moments[1]["fake"].norm()) < 0.1 * float(moments[0]["fake"].norm())


def test_eps_bounds_the_step_of_a_small_gradient(folder: Path, tmp_path: Path) -> None:
    """With eps far above the gradient's size Adam's first step is lr g / eps, not lr."""
    changes = []
    for eps in (1e-8, 1e3):
        made = trainer(folder, tmp_path / str(eps), healthy, eps=eps)
        before = weights(made)
        made.train_step(0)
        changes.append(max(float((v - before[k]).abs().max()) for k, v in weights(made).items()))
    assert changes[0] == pytest.approx(1e-3, rel=1e-2)
    assert 0 < changes[1] < 1e-5


def test_the_loop_decays_as_the_params_say(tiny_run: Path) -> None:
    section = load_params(tiny_run / "params.yaml").train
    assert settings_of(section).lr_decay_from is None
    assert settings_of(section.model_copy(update={"lr_decay_from": 10})).lr_decay_from == 10
    roles = {"lr_warmup": Updates(student=7), "clip": Limits(fake=2.0), "eps": 1e-11}
    settings = settings_of(section.model_copy(update=roles))
    assert settings.lr_warmup == {"student": 7, "fake": 0, "heads": 0}
    assert (settings.clip, settings.eps) == ({"fake": 2.0}, 1e-11)

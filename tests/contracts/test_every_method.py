"""What every file in rcm_core/methods must keep, with the parameters it ships with."""

from pathlib import Path

import pytest
import torch
import yaml
from gaussians import Perceptron, six_modes

from rcm_core.config import check
from rcm_core.errors import InputError
from rcm_core.protocols import Batch
from rcm_core.registry import available, find
from rcm_core.rng import generator

CONF = Path(__file__).parents[2] / "conf" / "method"
TEACHER = six_modes()
METHODS = available("methods")
STEPS = (0, 1, 2, 149, 150, 151, 152, 154, 155)


def parameters(name: str) -> dict:
    """The method's own section of its Hydra group."""
    section = yaml.safe_load((CONF / f"{name}.yaml").read_text())["method"]
    assert section.pop("name") == name
    return section


def build(name: str, tangent: str = "exact"):
    module = find("methods", name)
    return module.build(check(module.Config, parameters(name), name), tangent)


def networks() -> dict:
    return {"student": Perceptron(seed=1), "fake": Perceptron(seed=2), "teacher": Guarded(seed=3)}


class Guarded(Perceptron):
    """A teacher: calling it with gradients enabled would build a graph that nobody needs."""

    def forward(self, x, t, condition=None):
        assert not torch.is_grad_enabled(), "the teacher is called without gradient"
        return super().forward(x, t, condition)


def batch(step: int) -> Batch:
    rng = generator("batch", step)
    condition = {"text": torch.randn(16, 3, generator=rng)}
    return Batch(condition, condition, TEACHER.sample(16, rng))


def run(method, nets, step: int, seed: int = 0):
    """Every update's role, loss and gradients by network."""
    found = []
    for update in method.updates(nets, batch(step), step, generator(seed, step)):
        trained = {name: list(net.parameters()) for name, net in nets.items()}
        flat = [p for group in trained.values() for p in group]
        gradients = torch.autograd.grad(update.loss, flat, allow_unused=True)
        by_network, start = {}, 0
        for name, group in trained.items():
            by_network[name] = gradients[start : start + len(group)]
            start += len(group)
        found.append((update, by_network))
    return found


def test_the_parameters_are_complete():
    assert sorted(path.stem for path in CONF.glob("*.yaml")) == METHODS


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", STEPS)
def test_only_the_declared_role_of_an_update_gets_gradients(name, step):
    method, nets = build(name), networks()
    updates = run(method, nets, step)
    assert updates
    for update, gradients in updates:
        assert update.role in method.roles
        for network, found in gradients.items():
            if network == update.role:
                assert all(g is not None and g.isfinite().all() for g in found)
            else:
                assert all(g is None for g in found), f"{network} moved by an update of {update.role}"


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", STEPS)
def test_losses_are_finite_scalars_and_logs_are_detached(name, step):
    method = build(name)
    for update, _ in run(method, networks(), step):
        assert update.loss.shape == ()
        assert update.loss.isfinite()
        assert "nonfinite" in update.scalars
        for key, value in update.scalars.items():
            assert value.shape == (), key
            assert value.isfinite(), key
            assert not value.requires_grad, key


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", STEPS)
def test_student_update_tells_who_moves(name, step):
    method = build(name)
    roles = {update.role for update, _ in run(method, networks(), step)}
    assert method.student_update(step) == ("student" in roles)
    assert len(roles) == 1


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", [0, 155, 156])
def test_same_seed_same_loss_and_another_seed_another(name, step):
    method, nets = build(name), networks()
    first, second = run(method, nets, step), run(method, nets, step)
    for (a, ga), (b, gb) in zip(first, second):
        assert torch.equal(a.loss, b.loss)
        assert all(torch.equal(x, y) for x, y in zip(ga[a.role], gb[a.role]))
    other = run(method, nets, step, seed=1)
    assert not torch.equal(first[0][0].loss, other[0][0].loss)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tangent", ["exact", "semi", "discrete"])
def test_every_tangent_gives_nearly_the_same_step(name, tangent):
    exact, other = (run(build(name, kind), networks(), 200) for kind in ("exact", tangent))
    for (a, ga), (_, gb) in zip(exact, other):
        flat = [torch.cat([g.flatten() for g in grads[a.role]]) for grads in (ga, gb)]
        # float32 differences with h = 1e-4
        assert torch.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", ["x0", "teacher"])
@pytest.mark.parametrize("step", [0, 1, 150, 151])
def test_a_sample_that_is_not_finite_is_counted_and_changes_nothing_else(name, where, step):
    """Its row may hold anything: the others' gradient is finite and one sample is counted as left out."""
    method, nets = build(name), networks()
    data = batch(step)
    if where == "x0":
        data.x0[3] = torch.nan
    else:
        teacher = nets["teacher"]

        def broken(x, t, condition):
            F = teacher(x, t, condition)
            F[3] = torch.inf
            return F

        nets = {**nets, "teacher": broken}
    for update in method.updates(nets, data, step, generator(0, step)):
        gradients = torch.autograd.grad(update.loss, list(nets[update.role].parameters()))
        assert all(g.isfinite().all() for g in gradients)
        uses = "x0" in method.needs if where == "x0" else update.role == "student"
        consistency = "tangent_norm" in update.scalars
        expected = float(uses and (consistency or where == "teacher"))
        assert update.scalars["nonfinite"] == expected


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_checked_by_name(name):
    module, section = find("methods", name), parameters(name)
    key = next(iter(section))
    misspelt = {f"{k}x" if k == key else k: v for k, v in section.items()}
    with pytest.raises(InputError, match=f"unknown key '{key}x'.*did you mean '{key}'"):
        check(module.Config, misspelt, name)
    with pytest.raises(InputError, match="is missing"):
        check(module.Config, {k: v for k, v in section.items() if k != key}, name)

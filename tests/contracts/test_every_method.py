"""Contract of every file in rcm_core/methods, with the parameters of its preset."""

import pytest
import torch
from gaussians import Perceptron, six_modes
from presets import PRESETS, preset
from torch import Tensor

from rcm_core.config.base import check
from rcm_core.errors import InputError
from rcm_core.networks.discriminator import Heads
from rcm_core.protocols import FIELDS, Batch, Examples, Networks, TeacherTrajectory
from rcm_core.registry import available, find
from rcm_core.rng import generator

TEACHER = six_modes()
METHODS = available("methods")
STEPS = (0, 1, 2, 149, 150, 151, 152, 154, 155)
OF_RECIPES = (0, 150, 151)
"""Steps for the published recipes, which are these methods with other numbers."""


def build(name: str, tangent: str = "exact"):
    section = preset(name)["method"]
    module = find("methods", section.pop("name"))
    for key in ("gan_blocks", "blocks"):  # the test network has three
        if section.get(key):
            section[key] = [0, 2]
    section |= {
        k: None for k in ("degenerate_below",) if k in section
    }  # two numbers are too few for a contrast
    return module.build(check(module.Config, section, name), tangent)


def networks(method) -> dict:
    requirements = method.requirements
    teacher = Guarded(seed=3)
    nets = {"student": Perceptron(seed=1, extras=requirements.student_modules)}
    frozen = Perceptron(seed=3).requires_grad_(False)
    copies = (requirements.roles | {f.target for f in requirements.follows}) - {"heads", "student"}
    nets |= {name: Perceptron(seed=2, extras=requirements.student_modules) for name in copies}
    if "heads" in requirements.roles:
        torch.manual_seed(5)
        nets["heads"] = Heads(96, len(requirements.heads))
    return {**nets, "teacher": frozen, "guided_teacher": teacher, "unconditional_teacher": Guarded(seed=4)}


def seen(nets: dict) -> Networks:
    """Return the networks as a method gets them; ``nets`` has the trained ones by role."""
    return Networks(**{FIELDS.get(name, name): net for name, net in nets.items()})


class Guarded(Perceptron):
    """A teacher that must not be called with gradients enabled, because that would build an unused graph."""

    def forward(self, x, t, condition=None):
        assert not torch.is_grad_enabled(), "the teacher is called without gradient"
        return super().forward(x, t, condition)


def batch(step: int) -> Batch:
    """Return a batch with everything that a source can provide."""
    rng = generator("batch", step)
    condition, other = ({"text": torch.randn(16, 3, generator=rng)} for _ in range(2))
    x0 = TEACHER.sample(16, rng)
    real = Examples(TEACHER.sample(16, rng), other)
    t = torch.linspace(torch.pi / 2, 0.1, 20).expand(16, -1)
    states, velocities = torch.randn(2, 16, 20, 2, generator=rng)
    return Batch(condition, {"text": torch.zeros(1, 3)}, x0, real, TeacherTrajectory(states, t, velocities))


def run(method, nets, step: int, seed: int = 0):
    """Return every update's role, loss and gradients by network."""
    found = []
    trained = {
        name: [p for p in net.parameters() if p.requires_grad]
        for name, net in nets.items()
        if name not in ("guided_teacher", "unconditional_teacher", "target")
    }
    for update in method.updates(seen(nets), batch(step), step, generator(seed, step)):
        flat = [
            p for group in trained.values() for p in group if p.requires_grad
        ]  # except networks that are frozen in this update
        gradients = dict(zip(flat, torch.autograd.grad(update.loss, flat, allow_unused=True)))
        found.append((update, {name: [gradients.get(p) for p in group] for name, group in trained.items()}))
    return found


def moved(updates) -> list[Tensor]:
    """Return, for each update, the concatenated gradients of the trained networks."""
    return [
        torch.cat([g.flatten() for role in u.roles for g in grads[role] if g is not None])
        for u, grads in updates
    ]


def test_every_method_has_a_preset_of_its_name_and_every_preset_a_method():
    assert set(METHODS) <= set(PRESETS)
    assert {preset(name)["method"]["name"] for name in PRESETS} == set(METHODS)


def steps_of(name: str, steps: tuple[int, ...], of_recipes: tuple[int, ...]) -> list:
    return [(name, step) for step in (steps if name in METHODS else of_recipes)]


@pytest.fixture(
    scope="module",
    params=[case for name in PRESETS for case in steps_of(name, STEPS, OF_RECIPES)],
    ids="{0[0]}-{0[1]}".format,
)
def step_made(request):
    """Method, step, its networks and the result of :func:`run`."""
    name, step = request.param
    method = build(name)
    nets = networks(method)
    return method, step, nets, run(method, nets, step)


def test_only_the_declared_roles_of_an_update_get_gradients(step_made):
    method, _, nets, updates = step_made
    assert updates
    got = {role: [False] * len(list(nets[role].parameters())) for role in method.requirements.roles}
    for update, gradients in updates:
        assert set(update.roles) <= method.requirements.roles
        for network, found in gradients.items():
            if network in update.roles:
                assert all(g is None or g.isfinite().all() for g in found)
                got[network] = [a or g is not None for a, g in zip(got[network], found)]
            else:
                assert all(g is None for g in found), f"{network} moved by an update of {update.roles}"
    # together the updates of a step reach every trained weight
    assert all(all(flags) for role, flags in got.items() if any(role in u.roles for u, _ in updates))


def test_losses_are_finite_scalars_and_logs_are_detached(step_made):
    *_, updates = step_made
    assert any("nonfinite" in update.scalars for update, _ in updates)
    for update, _ in updates:
        assert update.loss.shape == ()
        assert update.loss.isfinite()
        for key, value in update.scalars.items():
            assert value.shape == (), key
            assert value.isfinite(), key
            assert not value.requires_grad, key


def test_student_update_tells_who_moves(step_made):
    method, step, _, updates = step_made
    assert method.student_update(step) == any("student" in update.roles for update, _ in updates)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("step", [0, 155, 156])
def test_same_seed_same_loss_and_another_seed_another(name, step):
    method = build(name)
    # fresh networks: the heads' power iteration moves on with every call
    first, second = (run(method, networks(method), step) for _ in range(2))
    assert [u.roles for u, _ in first] == [u.roles for u, _ in second]
    for a, b in zip(first, second):
        assert torch.equal(a[0].loss, b[0].loss)
    assert all(torch.equal(a, b) for a, b in zip(moved(first), moved(second)))
    other = run(method, networks(method), step, seed=1)
    assert not torch.equal(first[0][0].loss, other[0][0].loss)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tangent", ["exact", "semi", "discrete"])
def test_every_tangent_gives_nearly_the_same_step(name, tangent):
    exact, other = (run(m := build(name, kind), networks(m), 200) for kind in ("exact", tangent))
    for a, b in zip(moved(exact), moved(other)):
        # float32 differences with h = 1e-4, or 5e-3 (MeanFlow)
        assert torch.cosine_similarity(a, b, dim=0) > 0.99


TOUCHED = {"x0": "x0", "real": "real", "route": "routes"}


@pytest.mark.parametrize(
    ("name", "step"), [case for name in PRESETS for case in steps_of(name, (0, 1, 150, 151), (0, 151))]
)
@pytest.mark.parametrize("where", ["x0", "real", "route", "teacher"])
def test_a_sample_that_is_not_finite_is_counted_and_changes_nothing_else(name, where, step):
    """The sample's row may contain anything: the gradient of the others is finite, and the method excludes the row."""
    method = build(name)
    nets, data = networks(method), batch(step)
    match where:
        case "x0":
            data.x0[3] = torch.nan
        case "real":
            data.real.x0[3] = torch.nan
        case "route":
            data.route.x[3] = torch.nan
        case "teacher":
            teacher = nets["guided_teacher"]

            def broken(x, t, condition):
                F = teacher(x, t, condition)
                F[3] = torch.inf
                return F

            nets = {**nets, "guided_teacher": broken}
    counts = []
    for update in method.updates(seen(nets), data, step, generator(0, step)):
        weights = [p for role in update.roles for p in nets[role].parameters()]
        gradients = torch.autograd.grad(update.loss, weights, allow_unused=True)
        assert all(g.isfinite().all() for g in gradients if g is not None)
        counts.append(float(update.scalars.get("nonfinite", 0)))
    # prompts alone are known to rcm's updates of the fake score and to the student's with a GAN
    unread = method.student_update(step) is {"rcm": False, "dmd2": True}.get(preset(name)["method"]["name"])
    if where != "teacher" and TOUCHED[where] in method.requirements.needs and not unread:
        assert max(counts) >= 1
    if where != "teacher" and TOUCHED[where] not in method.requirements.needs:
        assert max(counts) == 0


@pytest.mark.parametrize("name", METHODS)
def test_parameters_are_checked_by_name(name):
    module, section = find("methods", name), preset(name)["method"]
    del section["name"]
    key = next(iter(section))
    misspelt = {f"{k}x" if k == key else k: v for k, v in section.items()}
    with pytest.raises(InputError, match=f"unknown key '{key}x'.*did you mean '{key}'"):
        check(module.Config, misspelt, name)
    with pytest.raises(InputError, match="is missing"):
        check(module.Config, {k: v for k, v in section.items() if k != key}, name)

"""Additions of a student to the teacher's network, on a real diffusers Wan: embedded inputs, features, the weights
that are published.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.errors import InputError
from rcm_core.jvp import flash_jvp, jvp
from rcm_core.models import wan
from rcm_core.networks.denoiser import Denoiser
from rcm_core.pipelines.mini import build_network
from rcm_core.rng import generator

WIDTH, LAYERS, TOKENS = 32, 3, 3 * 2 * 3
X = torch.randn(3, 2, 3, 4, 6, generator=generator("x"))
T = torch.tensor([torch.pi / 2, 0.8, 0.1], dtype=torch.float64)
TEXT = {"text": torch.randn(3, 5, 16, generator=generator("text"))}
SCALES = torch.tensor([1.0, 4.5, 7.0])


def build(*extras: str, family=wan) -> Denoiser:
    """Return a tiny network in which every part matters, with untrained extras."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build_network(channels=2, heads=2, head_dim=16, layers=LAYERS, ffn_dim=64, text_dim=16)
        denoiser = Denoiser(network.eval(), family, RectifiedFlow(1000.0), extras)
    return randomise(denoiser, "network")


def randomise(denoiser: Denoiser, prefix: str) -> Denoiser:
    rng = generator("weights", prefix)
    with torch.no_grad():
        for name, p in denoiser.named_parameters():
            if name.startswith(prefix):
                p.normal_(0, 0.2, generator=rng)
    return denoiser


def learned(*extras: str) -> Denoiser:
    """Return the network with extras as after training."""
    return randomise(build(*extras), "extras")


@torch.no_grad()
def F(denoiser: Denoiser, **given: torch.Tensor) -> torch.Tensor:  # noqa: N802
    return denoiser(X, T, {**TEXT, **given})


def test_a_student_begins_as_its_teacher_whatever_it_is_given():
    student = build("guidance", "end", "log_variance")
    assert torch.equal(F(student, guidance=SCALES, end=T / 2), F(build()))
    assert torch.equal(student.log_variance(T), torch.zeros(3))


def test_after_training_every_input_matters_to_its_own_sample():
    student, plain = learned("guidance", "end"), F(build())
    assert torch.equal(F(student), plain)
    for name in ("guidance", "end"):
        value = torch.tensor([0.0, 0.7, 0.7])
        found = F(student, **{name: value})
        torch.testing.assert_close(found[0], plain[0], atol=1e-5, rtol=1e-5)  # zero is absent, always
        assert ((found - plain)[1:].abs().amax((1, 2, 3, 4)) > 1e-3).all()
    both = F(student, guidance=SCALES, end=T / 2)
    alone = student(X[1:2], T[1:2], {"text": TEXT["text"][1:2], "guidance": SCALES[1:2], "end": T[1:2] / 2})
    # a batch of another size may take another matrix kernel
    torch.testing.assert_close(alone.detach(), both[1:2], atol=1e-5, rtol=1e-4)


def test_an_input_that_the_method_did_not_ask_for_is_not_embedded():
    assert torch.equal(F(learned("end"), guidance=SCALES), F(build()))


def test_e49_the_published_network_is_the_student_at_the_folded_scale():
    student = learned("guidance", "log_variance")
    weights = student.state_dict()
    before = {name: value.clone() for name, value in weights.items()}
    for scale in (1.0, 4.5):
        published = build()
        published.network.load_state_dict(student.plain(weights, scale))
        asked = F(student, guidance=torch.full((3,), scale))
        # float32: the same sum in another order
        torch.testing.assert_close(F(published), asked, atol=1e-4, rtol=1e-4)
        assert (asked - F(build())).abs().max() > 0.01
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_e49_folding_nothing_leaves_every_weight_and_folding_a_scale_one_bias():
    student = learned("guidance", "end")
    own = {n.removeprefix("network."): w for n, w in student.state_dict().items() if n.startswith("network.")}
    none, some = (student.plain(student.state_dict(), scale) for scale in (None, 4.5))
    assert none.keys() == some.keys() == own.keys() == student.network.state_dict().keys()
    assert all(torch.equal(own[name], none[name]) for name in own)
    changed = [name for name in own if not torch.equal(own[name], some[name])]
    assert changed == [f"{wan.time_layer}.bias"]


def test_the_published_weights_are_those_given_not_the_module_s_own():
    """They may be an EMA of the weights; here all weights are doubled."""
    student = learned("guidance")
    twice = {name: 2 * value for name, value in student.state_dict().items()}
    other = build("guidance")
    other.load_state_dict(twice)
    published = build()
    published.network.load_state_dict(student.plain(twice, 4.5))
    torch.testing.assert_close(F(published), F(other, guidance=torch.full((3,), 4.5)), atol=1e-3, rtol=1e-3)


def test_the_published_student_of_two_times_is_the_one_that_jumps_to_data():
    student, published = learned("end"), build()
    published.network.load_state_dict(student.plain(student.state_dict(), None))
    torch.testing.assert_close(F(published), F(student, end=torch.zeros(3)), atol=1e-5, rtol=1e-5)
    assert (F(published) - F(student, end=T / 2)).abs().max() > 1e-3


class Kept(nn.Module):
    """A block that keeps its output."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        self.found = self.block(*args, **kwargs)
        return self.found


def test_features_are_the_tokens_that_leave_the_blocks_in_the_order_asked_for():
    denoiser = build()
    kept = [Kept(block) for block in denoiser.network.blocks]
    denoiser.network.blocks = nn.ModuleList(kept)
    features = denoiser.features(X, T, TEXT, [2, 0])
    assert [f.shape for f in features] == [(3, TOKENS, WIDTH)] * 2
    assert torch.equal(features[0], kept[2].found)
    assert torch.equal(features[1], kept[0].found)
    assert not torch.equal(features[0], features[1])


def test_features_leave_no_hook_behind_even_after_an_error():
    denoiser = build("guidance")
    denoiser.features(X, T, {**TEXT, "guidance": SCALES}, [0, 1])
    with pytest.raises(RuntimeError):
        denoiser.features(X[:, :1], T, {**TEXT, "guidance": SCALES}, [0, 1])
    assert not any(module._forward_hooks for module in denoiser.modules())


def test_features_carry_gradients_to_the_sample_through_a_frozen_network():
    x = X.clone().requires_grad_()
    denoiser = build().requires_grad_(False)
    denoiser.features(x, T, TEXT, [1])[0].square().sum().backward()
    assert (x.grad.abs().amax((1, 2, 3, 4)) > 0).all()


def test_features_and_embedded_inputs_have_tangents(monkeypatch):
    """Forward-mode AD against central differences, in float64 all through: the cast inside is made the identity."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    student = learned("end").double()
    t, h = torch.tensor([1.2, 0.8, 0.3], dtype=torch.float64), 1e-6
    text = {"text": TEXT["text"].double()}
    x, dx = X.double(), torch.randn(X.shape, generator=generator("dx"), dtype=torch.float64)

    def tokens(state, angle, end):
        return student.features(state, angle, {**text, "end": end}, [1])[0]

    def velocity(state, angle, end):
        return student(state, angle, {**text, "end": end})

    for function in (tokens, velocity):
        directions = (dx, torch.ones_like(t), -torch.ones_like(t))
        with torch.no_grad(), flash_jvp():
            _, found = jvp(function, (x, t, t / 2), directions)
        with torch.no_grad():
            ahead, behind = (function(x + s * dx, t + s, t / 2 - s) for s in (h, -h))
        expected = (ahead - behind) / (2 * h)
        # rounding 1e-15 / h, and h^2 times third derivatives of up to 1000^3 in the network's time
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_blocks_that_do_not_exist_are_named():
    denoiser = build()
    assert len(denoiser.blocks()) == LAYERS
    assert denoiser.check_blocks([0, 2]) == WIDTH
    with pytest.raises(InputError, match=r"asks for blocks \[1, 3\], but the network has 3 \(from 0\)"):
        denoiser.check_blocks([1, 3])


def test_a_family_without_a_time_embedding_is_refused_what_is_added_to_it():
    parts = {name: getattr(wan, name) for name in ("blocks", "call")}
    family = SimpleNamespace(**parts, time_layer=None)
    for name in ("guidance", "end"):
        with pytest.raises(InputError, match="no time embedding"):
            build(name, family=family)
    assert torch.equal(build("log_variance", family=family).log_variance(T), torch.zeros(3))

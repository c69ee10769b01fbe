"""The frozen teacher in the forms that a method gets: guided, for the negative prompt, and with gradients."""

import pytest
import torch
from gaussians import Perceptron
from torch import nn

from rcm_core.rng import generator
from rcm_core.training.networks import FrozenTeacher

X, TEXT = (torch.randn(4, 2, generator=generator(n), dtype=torch.float64) for n in ("x", "text"))
T = torch.linspace(0.1, 1.5, 4, dtype=torch.float64)
NEGATIVE = {"text": torch.randn(1, 2, generator=generator("negative"), dtype=torch.float64)}


class Conditional(nn.Module):
    """A network that uses only its text; it must not get other parts of the condition."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Perceptron(seed=1).double()

    def forward(self, x, t, condition):
        assert condition.keys() == {"text"}
        return self.inner(x + condition["text"].sin(), t)


@pytest.fixture
def denoiser() -> Conditional:
    return Conditional().requires_grad_(False)


def test_each_sample_is_guided_at_its_own_scale(denoiser):
    scales = torch.tensor([1.0, 1.5, 4.0, 0.0])
    teacher = FrozenTeacher(denoiser, 3.0, NEGATIVE)
    together = teacher.guide(X, T, {"text": TEXT, "guidance": scales})
    for i, scale in enumerate(scales.tolist()):
        alone = FrozenTeacher(denoiser, scale, NEGATIVE).guide(X, T, {"text": TEXT})
        torch.testing.assert_close(together[i], alone[i], atol=1e-14, rtol=0)


def test_without_a_scale_in_the_condition_it_is_the_teacher_s_own(denoiser):
    found = FrozenTeacher(denoiser, 3.0, NEGATIVE).guide(X, T, {"text": TEXT})
    conditional, null = (
        denoiser(X, T, {"text": TEXT}),
        denoiser(X, T, {"text": NEGATIVE["text"].expand(4, 2)}),
    )
    torch.testing.assert_close(found, null + 3 * (conditional - null), atol=1e-14, rtol=0)


def test_null_is_the_negative_prompt_whatever_the_condition(denoiser):
    teacher = FrozenTeacher(denoiser, 3.0, NEGATIVE)
    null = denoiser(X, T, {"text": NEGATIVE["text"].expand(4, 2)})
    assert torch.equal(teacher.unconditional(X, T, {"text": TEXT, "guidance": T}), null)
    assert torch.equal(teacher.guide(X, T, {"text": TEXT, "guidance": torch.zeros(4)}), null)


def test_the_other_inputs_of_a_student_do_not_reach_the_teacher(denoiser):
    teacher = FrozenTeacher(denoiser, 3.0, NEGATIVE)
    plain = teacher.guide(X, T, {"text": TEXT})
    assert torch.equal(teacher.guide(X, T, {"text": TEXT, "end": T}), plain)


def test_gradients_go_through_the_unguided_network_alone(denoiser):
    x = X.clone().requires_grad_()
    teacher = FrozenTeacher(denoiser, 3.0, NEGATIVE)
    assert not teacher.guide(x, T, {"text": TEXT}).requires_grad
    assert not teacher.unconditional(x, T, {"text": TEXT}).requires_grad
    denoiser(x, T, {"text": TEXT}).sum().backward()
    assert (x.grad.abs().sum(1) > 0).all()
    assert all(p.grad is None for p in denoiser.parameters())

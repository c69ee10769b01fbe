"""Adversarial losses in closed form (E37 to E40)."""

import math

import pytest
import torch

from rcm_core.losses.adversarial import hinge_critic, hinge_student, logistic_critic, logistic_student

LOGITS = torch.tensor([[[3.0, -1.0], [0.5, 0.5]]], dtype=torch.float64)  # one sample, two heads, two tokens


def test_tokens_and_heads_are_averaged():
    assert hinge_student(LOGITS).tolist() == [-(1.0 + 0.5) / 2]
    many = LOGITS.repeat(1, 1, 10)
    assert torch.equal(hinge_student(many), hinge_student(LOGITS))
    heads = LOGITS.repeat(1, 3, 1)
    assert torch.equal(hinge_student(heads), hinge_student(LOGITS))


def test_e38_hinge_stops_caring_beyond_one():
    real = torch.tensor([[[2.0]], [[0.0]], [[-1.0]]], dtype=torch.float64, requires_grad=True)
    fake = torch.tensor([[[-2.0]], [[0.0]], [[1.0]]], dtype=torch.float64, requires_grad=True)
    each = hinge_critic(real, fake)
    assert each.tolist() == [0.0, 1.0, 2.0]
    each.sum().backward()
    assert real.grad.flatten().tolist() == [0.0, -0.5, -0.5]
    assert fake.grad.flatten().tolist() == [0.0, 0.5, 0.5]


def test_e37_the_student_s_gradient_is_minus_one_whatever_the_logit():
    fake = torch.tensor([[[-100.0]], [[100.0]]], requires_grad=True)
    hinge_student(fake).sum().backward()
    assert fake.grad.flatten().tolist() == [-1.0, -1.0]


def test_e39_e40_logistic_losses_are_log_probabilities():
    p = 0.8
    logit = torch.full((1, 1, 1), math.log(p / (1 - p)), dtype=torch.float64)
    # softplus(- logit p) = - ln p
    assert logistic_student(logit).item() == pytest.approx(-math.log(p))
    assert logistic_critic(logit, logit).item() == pytest.approx(-math.log(p) - math.log(1 - p))
    undecided = torch.zeros(1, 1, 1, dtype=torch.float64)
    assert logistic_critic(undecided, undecided).item() == pytest.approx(2 * math.log(2))


def test_e39_does_not_saturate_and_e40_does_not_overflow():
    far = torch.tensor([[[-1e4]]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(logistic_student(far).sum(), far)
    assert slope.item() == -1.0
    assert logistic_critic(far, -far).item() == pytest.approx(2e4)


@pytest.mark.parametrize("critic", [hinge_critic, logistic_critic])
def test_a_better_discriminator_has_less_loss(critic):
    up, down = torch.full((1, 2, 3), 0.3), torch.full((1, 2, 3), -0.3)
    assert critic(up, down) < critic(torch.zeros_like(up), torch.zeros_like(up)) < critic(down, up)

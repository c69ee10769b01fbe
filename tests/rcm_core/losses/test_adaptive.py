"""The adaptive weighting (E35), its prior (E36), and the clipped tangent."""

import math

import torch

from rcm_core.losses.consistency import adaptive, clip_tangent, prior_weight
from rcm_core.networks.embeddings import LogVariance
from rcm_core.rng import generator


def test_e35_the_best_log_variance_is_the_logarithm_of_the_expected_loss():
    losses = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    lv = losses.log().requires_grad_()
    value = adaptive(losses, lv)
    value.sum().backward()
    torch.testing.assert_close(lv.grad, torch.zeros_like(lv), atol=1e-15, rtol=0)
    torch.testing.assert_close(value.detach() - lv.detach(), torch.ones(3, dtype=torch.float64))
    for away in (-0.1, 0.1):  # a minimum
        assert (adaptive(losses, losses.log() + away) > adaptive(losses, losses.log())).all()


def test_e36_the_prior_weight_is_one_over_tan_t_and_moves_the_best_log_variance_by_it():
    t = torch.tensor([0.1, math.pi / 4, 1.5], dtype=torch.float64)
    weight = prior_weight(t, t)
    torch.testing.assert_close(weight, t.cos() / t.sin())
    losses = torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64)
    lv = (losses.log() - t.tan().log()).requires_grad_()
    adaptive(losses, lv, weight).sum().backward()
    torch.testing.assert_close(lv.grad, torch.zeros_like(lv), atol=1e-15, rtol=0)


def test_e35_weighting_scales_the_gradient_of_the_loss_by_a_positive_number():
    losses = torch.tensor([0.5, 7.0], dtype=torch.float64, requires_grad=True)
    lv = torch.tensor([-2.0, 3.0], dtype=torch.float64)
    adaptive(losses, lv).sum().backward()
    torch.testing.assert_close(losses.grad, (-lv).exp())


def test_e35_the_head_learns_a_profile_of_variances():
    """Trained alone on |g|^2 = v(t) chi^2 / 4, four degrees of freedom: every angle's weighted loss becomes 1."""

    def profile(angles: torch.Tensor) -> torch.Tensor:
        return (2 * (2 * angles).sin() - 1).exp()

    head = LogVariance().double()
    optimiser = torch.optim.Adam(head.parameters(), lr=0.03)
    steps = 300
    for step in range(steps):
        rng = generator("profile", step)
        t = torch.rand(256, generator=rng, dtype=torch.float64) * (math.pi / 2)
        losses = profile(t) * torch.randn(256, 4, generator=rng, dtype=torch.float64).square().mean(1)
        optimiser.zero_grad()
        adaptive(losses, head(t)).mean().backward()
        optimiser.param_groups[0]["lr"] = 0.03 * (1 - step / steps)
        optimiser.step()
    t = torch.linspace(0.1, 1.5, 30, dtype=torch.float64)
    # 33 weights from some 10^4 effective samples of relative variance 1/2: a deviation of sqrt(33 / 2e4) = 0.04
    assert (head(t) - profile(t).log()).abs().max() < 0.15
    assert profile(t).log().abs().max() > 0.7  # and it began at 0


def test_clipped_elements_are_in_the_unit_interval_and_the_others_as_they_were():
    g = torch.tensor([[-5.0, -1.0, 0.3, 0.999, 1e30]])
    assert clip_tangent(g).tolist() == [
        [-1.0, -1.0, float(torch.tensor(0.3)), float(torch.tensor(0.999)), 1.0]
    ]
    assert clip_tangent(g).dtype == torch.float64

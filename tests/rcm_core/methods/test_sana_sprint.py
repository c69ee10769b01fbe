"""SANA-Sprint: order of updates, start of the adversarial samples, the discriminator's fake samples."""

import math
from itertools import pairwise

import pytest
import torch
from gaussians import Perceptron, six_modes
from spies import Spy, gradients, preset
from torch import nn

from rcm_core.diffusion.trigflow import NOISE_ANGLE, diffuse, predict_x0
from rcm_core.protocols import Batch, Examples, Networks
from rcm_core.rng import generator

MIXTURE = six_modes(torch.float64)
SIZE = 32
X0 = MIXTURE.sample(SIZE, generator("real"))
TEXT = torch.arange(SIZE).double()[:, None]
BATCH = Batch({}, {}, torch.zeros_like(X0), Examples(X0, {"text": TEXT}))
CHANGES = {"blocks": [0], "weighting": "none", "warmup": 0, "p_mean": 0.0, "p_std": 1.0}


class Backbone(nn.Module):
    """A backbone whose only feature is the noised sample itself, as one token."""

    def forward(self, x, t, condition):
        return MIXTURE.velocity(x, t)

    def features(self, x, t, condition, blocks):
        return [x[:, None] for _ in blocks]


class Sum(nn.Module):
    """A head whose logit is the sum of the features, times a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, features):
        return torch.stack([self.weight * tokens.sum(-1) for tokens in features], 1)


def networks(student=None) -> dict[str, Spy | Sum]:
    return {
        "student": Spy(student or Perceptron(seed=1).double()),
        "guided_teacher": Spy(MIXTURE.velocity),
        "teacher": Spy(Backbone()),
        "discriminator": Sum(),
    }


def updates(step: int, student=None, seed: int = 0, **changes):
    nets = networks(student)
    method = preset("sana_sprint", **{**CHANGES, **changes})
    return list(method.updates(Networks(**nets), BATCH, step, generator(seed, step))), nets


def test_student_and_heads_move_in_turn():
    roles = [[u.roles for u in updates(step)[0]] for step in range(4)]
    assert roles == [[("student",)] * 2, [("heads",)]] * 2
    method = preset("sana_sprint", **CHANGES)
    assert [method.student_update(step) for step in range(4)] == [True, False] * 2


def test_the_warmup_counts_the_iterations_of_both_phases():
    """As in the release, step 10 comes after five updates of the student and five of the discriminator."""
    losses = []
    for step, warmup in ((10, 10), (10, 0), (8, 10)):
        nets = networks()
        method = preset("sana_sprint", **{**CHANGES, "warmup": warmup})
        losses.append(next(method.updates(Networks(**nets), BATCH, step, generator(0))).loss)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_without_consistency_the_adversarial_loss_is_alone():
    found, nets = updates(0, consistency_weight=0.0, weighting="adaptive_prior")
    assert [list(u.scalars) for u in found] == [["adversarial_loss", "nonfinite"]]
    assert len(nets["student"].calls) == 1
    assert not nets["guided_teacher"].calls
    requirements = preset("sana_sprint", consistency_weight=0.0, weighting="adaptive_prior").requirements
    assert requirements.student_modules == frozenset()  # no head without a loss to weigh
    assert preset("sana_sprint", weighting="adaptive_prior").requirements.student_modules == {"log_variance"}


def test_without_the_adversarial_loss_every_step_is_the_student_s():
    found, nets = updates(1, adversarial_weight=0.0)
    assert [u.roles for u in found] == [("student",)]
    assert not nets["teacher"].calls
    method = preset("sana_sprint", **{**CHANGES, "adversarial_weight": 0.0, "warmup": 5})
    assert [method.student_update(step) for step in range(4)] == [True] * 4
    assert (method.requirements.roles, method.requirements.heads) == (frozenset({"student"}), ())
    # the consistency term is the one with the discriminator beside it, the warm-up counts iterations
    first = next(method.updates(Networks(**networks()), BATCH, 4, generator(0))).loss
    beside = preset("sana_sprint", **{**CHANGES, "warmup": 5})
    assert torch.equal(first, next(beside.updates(Networks(**networks()), BATCH, 4, generator(0))).loss)


def test_no_loss_at_all_is_refused():
    with pytest.raises(ValueError, match="both 0; raise one"):
        preset("sana_sprint", consistency_weight=0.0, adversarial_weight=0.0)


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_noise_share_is_the_share_of_adversarial_samples_that_start_from_pure_noise(step, share):
    angles = torch.cat(
        [updates(step, seed=s, noise_share=share)[1]["student"].calls[-1].t for s in range(20)]
    )
    pure = float((angles == NOISE_ANGLE).double().mean())
    assert abs(pure - share) <= 4 * math.sqrt(share * (1 - share) / len(angles))
    # the others are log-normal around tan t = 1
    others = angles[angles < NOISE_ANGLE].tan().log()
    if share < 1:
        assert abs(float(others.mean())) < 4 / math.sqrt(len(others))


def test_the_adversarial_sample_is_one_step_from_noised_real_data():
    _, nets = updates(1, noise_share=0.0)
    (call,) = nets["student"].calls
    z = (call.x - call.t.cos()[:, None] * X0) / call.t.sin()[:, None]
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(2 * z.numel())
    assert torch.equal(call.condition["text"], TEXT)
    seen = nets["teacher"].calls[1]
    made = predict_x0(call.x, call.t, nets["student"].velocity(call.x, call.t)).detach()
    noise = (seen.x - seen.t.cos()[:, None] * made) / seen.t.sin()[:, None]
    assert abs(float(noise.std()) - 1) < 4 / math.sqrt(2 * noise.numel())


def test_the_student_descends_minus_the_logit_of_its_own_sample():
    (update,), nets = updates(0, consistency_weight=0.0, adversarial_weight=0.5)
    call, seen = nets["student"].calls[0], nets["teacher"].calls[0]
    made = predict_x0(call.x, call.t, nets["student"].velocity(call.x, call.t))
    z = (seen.x - seen.t.cos()[:, None] * made.detach()) / seen.t.sin()[:, None]
    expected = -0.5 * diffuse(made, z, seen.t).sum(1).mean()
    torch.testing.assert_close(update.loss, expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(
        gradients(update.loss, nets["student"]), gradients(expected, nets["student"]), atol=1e-12, rtol=1e-10
    )
    assert all(p.requires_grad for p in nets["discriminator"].parameters())


@pytest.mark.parametrize("misaligned", [False, True])
def test_the_critic_s_loss_in_closed_form(misaligned):
    """A discriminator without noise whose logit is the sum of the sample; fakes are 0.3 everywhere."""
    found, nets = updates(
        1,
        lambda x, t, condition: torch.full_like(x, -0.3),  # from pure noise D = - F
        noise_share=1.0,
        misaligned=misaligned,
        critic_mean=-30.0,  # tan s = 1e-13
        critic_std=1e-3,
    )
    (update,) = found
    real, other = X0.sum(1), X0.roll(1, 0).sum(1)
    fake = torch.full_like(real, 1 + 0.6)
    if misaligned:  # the prompts stay where they are, the pictures move on
        fake = (fake + (1 + other).clamp(min=0)) / 2
        assert torch.allclose(nets["teacher"].calls[-1].x, X0.roll(1, 0))
        assert torch.equal(nets["teacher"].calls[-1].condition["text"], TEXT)
    expected = 0.5 * ((1 - real).clamp(min=0) + fake)
    torch.testing.assert_close(update.loss, expected.mean(), atol=1e-10, rtol=0)
    assert len(nets["teacher"].calls) == 2 + misaligned
    # and its gradient moves the heads alone
    assert gradients(update.loss, nets["discriminator"]).abs().max() > 0
    assert not nets["student"].moving


def test_real_and_fake_are_noised_by_independent_draws():
    _, nets = updates(1, misaligned=True, critic_mean=-0.6, critic_std=1.0)
    angles = [call.t for call in nets["teacher"].calls]
    assert not any(torch.equal(a, b) for a, b in pairwise(angles))
    logs = torch.stack(angles).tan().log()
    # ln tan s ~ N(- 0.6, 1)
    assert abs(float(logs.mean()) + 0.6) < 4 / math.sqrt(logs.numel())


def test_the_embedded_scale_is_the_same_everywhere_in_a_step():
    nets = networks(Perceptron(seed=1, extras=["guidance"]).double())
    method = preset("sana_sprint", **CHANGES, guidance=[4.0, 4.5, 5.0], guidance_at=4.5)
    list(method.updates(Networks(**nets), BATCH, 0, generator(0)))
    scales = [
        call.condition["guidance"] for name in ("guided_teacher", "student") for call in nets[name].calls
    ]
    assert len(scales) == 4
    assert all(torch.equal(scales[0], scale) for scale in scales)
    assert set(scales[0].tolist()) == {4.0, 4.5, 5.0}


@pytest.mark.parametrize("weighting", ["none", "adaptive_prior"])
def test_the_consistency_term_is_scm_on_real_data(weighting):
    """The same draws, the same loss: x0 is real and the prompts are its own."""
    common = {"warmup": 0, "warmup_form": "scm", "weighting": weighting, "p_mean": 0.0, "p_std": 1.0}
    student = Perceptron(seed=1, extras=["log_variance"]).double()
    sprint = preset("sana_sprint", **common, blocks=[0], consistency_weight=1.0)
    scm = preset("scm", **common, limit="normalise", consistency_weight=1.0)
    nets = networks(student)
    first = next(sprint.updates(Networks(**nets), BATCH, 0, generator(3)))
    second = next(scm.updates(Networks(**nets), Batch({"text": TEXT}, {}, X0), 0, generator(3)))
    assert torch.equal(first.loss, second.loss)


def test_a_fake_that_is_not_finite_is_left_out_of_the_critic_s_loss_and_counted():
    def broken(x, t, condition):
        F = MIXTURE.velocity(x, t)
        F[3] = torch.nan
        return F

    (update,), nets = updates(1, broken)
    assert update.roles == ("heads",)
    assert update.scalars["nonfinite"] == 1
    assert update.loss.isfinite()
    assert gradients(update.loss, nets["discriminator"]).isfinite().all()

"""DMD2's discriminator: where its features come from, the losses of student and critic, what it leaves alone."""

import math

import pytest
import torch
from dmd2_networks import BATCH, OFF, ON, SIZE, networks, updates
from gaussians import Perceptron
from spies import Spy, gradients, preset

from rcm_core.diffusion.trigflow import predict_x0
from rcm_core.losses.adversarial import logistic_critic, logistic_student
from rcm_core.protocols import FIELDS, Examples, Networks
from rcm_core.rng import generator
from rcm_core.training.parallel.activation_checkpointing import checkpoint_blocks


def test_a_discriminator_on_the_teacher_leaves_the_fake_score_alone():
    nets = networks() | {"teacher": Spy(Perceptron(seed=3).double().requires_grad_(False))}
    on = {**ON, "gan_backbone": "teacher"}
    score, critic = updates(1, nets, **on)
    assert (score.roles, critic.roles) == (("fake",), ("heads",))
    assert len(nets["fake_score"].calls) == 1  # its own loss
    assert gradients(critic.loss, nets["discriminator"]).any()
    assert not gradients(critic.loss, nets["fake_score"]).any()
    made, real = nets["teacher"].calls
    logits = [
        nets["discriminator"](nets["teacher"].velocity.features(c.x, c.t, c.condition, [0, 2]))
        for c in (real, made)
    ]
    torch.testing.assert_close(critic.loss, 0.2 * logistic_critic(*logits).mean(), atol=0, rtol=1e-12)
    (student,) = updates(0, nets, **on)
    (alone,) = updates(0, networks(), **OFF)
    seen = nets["teacher"].calls[-1]
    logits = nets["discriminator"](nets["teacher"].velocity.features(seen.x, seen.t, {}, [0, 2]))
    expected = 0.3 * logistic_student(logits).mean()
    torch.testing.assert_close(student.loss - alone.loss, expected, atol=1e-13, rtol=1e-10)
    moved = [
        name
        for name in ("student", "fake_score", "discriminator")
        if gradients(student.loss, nets[name]).any()
    ]
    assert moved == ["student"]
    assert all(p.requires_grad for p in nets["discriminator"].parameters())


def test_shared_noise_is_the_same_angle_and_noise_for_real_and_fake():
    """Their difference at an angle is then that of the clean samples, times the cosine."""
    nets = networks()
    list(updates(1, nets, **ON, gan_shared_noise=True))
    made, real = nets["fake_score"].calls[-2:]
    assert torch.equal(made.t, real.t)
    last = nets["student"].calls[-1]
    xg = predict_x0(last.x, last.t, nets["student"].velocity(last.x, last.t)).detach()
    expected = torch.cos(made.t)[:, None] * (xg - BATCH.real.x0)
    torch.testing.assert_close(made.x - real.x, expected, atol=1e-12, rtol=0)


def test_the_student_s_adversarial_loss_is_that_of_its_renoised_sample():
    nets = networks()
    with_gan = next(updates(0, nets, **ON))
    without = next(updates(0, networks(), **OFF))
    y, t, condition, _ = nets["fake_score"].calls[-1]  # its features
    logits = nets["discriminator"](nets["fake_score"].velocity.features(y, t, condition, [0, 2]))
    torch.testing.assert_close(
        with_gan.loss - without.loss, 0.3 * logistic_student(logits).mean(), atol=1e-13, rtol=1e-10
    )


def test_the_critic_s_loss_is_logistic_in_real_and_fake_at_independent_noises():
    nets = networks()
    critic = list(updates(1, nets, **ON))[1]
    assert critic.roles == ("fake", "heads")
    made, real = nets["fake_score"].calls[-2:]
    assert not torch.equal(made.t, real.t)
    logits = [
        nets["discriminator"](nets["fake_score"].velocity.features(c.x, c.t, c.condition, [0, 2]))
        for c in (real, made)
    ]
    torch.testing.assert_close(critic.loss, 0.2 * logistic_critic(*logits).mean(), atol=0, rtol=1e-12)
    z = (real.x - torch.cos(real.t)[:, None] * BATCH.real.x0) / torch.sin(real.t)[:, None]
    assert abs(float(z.std()) - 1) < 4 / math.sqrt(2 * z.numel())


def test_a_real_sample_that_is_not_finite_is_left_out_of_the_critic_s_loss_and_counted():
    real = BATCH.real.x0.clone()
    real[3] = torch.nan
    batch, nets = BATCH._replace(real=Examples(real, {})), networks()
    critic = list(preset("dmd2", **ON).updates(Networks(**nets), batch, 1, generator(0, 1)))[1]
    assert critic.scalars["nonfinite"] == 1
    assert all(gradients(critic.loss, nets[FIELDS[role]]).isfinite().all() for role in critic.roles)
    made, seen = nets["fake_score"].calls[-2:]
    logits = [
        nets["discriminator"](nets["fake_score"].velocity.features(c.x, c.t, c.condition, [0, 2]))
        for c in (seen, made)
    ]
    rows = torch.arange(SIZE) != 3
    torch.testing.assert_close(critic.loss, 0.2 * logistic_critic(*logits)[rows].mean(), atol=0, rtol=1e-12)


@pytest.mark.parametrize("kind", ["blocks", "matmuls"])
def test_with_checkpointing_the_gan_s_gradients_are_the_same(kind):
    """Backward recomputes the fake score's blocks, still frozen as in the student's step."""

    def moved(how: str, step: int) -> dict[str, list[torch.Tensor | None]]:
        nets = networks()
        checkpoint_blocks(list(nets["fake_score"].velocity.layers), how)
        for update in updates(step, nets, **ON):
            update.loss.backward()
        return {
            role: [p.grad for p in nets[FIELDS[role]].parameters()] for role in ("student", "fake", "heads")
        }

    for step, updater in ((0, {"student"}), (1, {"fake", "heads"})):
        expected, found = moved("none", step), moved(kind, step)
        for role in expected:
            assert all((g is not None) == (role in updater) for g in found[role])
            assert all(e is g or torch.equal(e, g) for e, g in zip(expected[role], found[role], strict=True))

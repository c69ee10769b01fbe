"""Deliberate differences from a release: our result, the release's result, and that they differ."""

from __future__ import annotations

import math

import pytest
import torch
from oracle import DIFFERENT, Case, cases, error
from oracle_flow_methods import ect
from oracle_terms import guided, lcm_loss, lcm_pair, sampler, text
from spies import gradients, preset

from rcm_core.diffusion.parameterisation import TrigFlow
from rcm_core.diffusion.trigflow import diffuse, predict_x0
from rcm_core.networks.embeddings import FREQUENCIES, Embedding, waves
from rcm_core.rng import generator
from rcm_core.samplers.few_step import sample_student

CASES = {str(case): case for case in cases() if str(case) in DIFFERENT}


@pytest.mark.parametrize("steps", [1, 4])
def test_the_first_state_is_that_of_a_rectified_flow_s_pipeline(steps):
    """Section 7: below pi/2 rCM's release begins with x = z, a rectified-flow pipeline with (cos t + sin t) z."""
    case = CASES[f"rcm-sampler-{steps}-first-state"]
    ours, theirs, angles = sampler(case)["x0"], case.outputs["x0"], case.settings["angles"]
    assert 1e-3 < error(ours, theirs) < 1e-2
    # beginning with z samples a variance-preserving network
    same = case.net("student", parameterisation=TrigFlow())
    assert error(sample_student(same, case["noises"], text(case), angles), theirs) <= case.tolerance
    # so does dividing the first noise, which is then 1.2 % smaller
    factor = math.cos(angles[0]) + math.sin(angles[0])
    assert factor == pytest.approx(1.0124, abs=1e-4)
    scaled = torch.cat([case["noises"][:1] / factor, case["noises"][1:]])
    assert error(sample_student(case.net("student"), scaled, text(case), angles), theirs) <= case.tolerance


def test_where_the_nearer_side_is_clean_ect_s_target_is_the_teacher_s_prediction():
    """Section 11: FastGen takes the real data there."""
    case = CASES["ect-fastgen-teacher-g3-huber0.06-stage1"]
    of, ours, theirs = case.settings, ect(case)["loss"], case.outputs["loss"]
    t = (of["mean"] + case["normal"]).exp().atan()
    near = preset("ect", base=2.0, stage_every=10, steepness=of["k"], slope=1.0).nearer(t, 10 * of["stage"])
    clean = near == 0
    assert 0 < int(clean.sum()) < len(clean)
    assert error(ours[~clean], theirs[~clean]) <= case.tolerance
    assert (ours[clean] / theirs[clean] - 1).abs().min() > 0.01
    x = diffuse(case["x0"], case["z"], t)
    prediction = predict_x0(x, t, case.net("student")(x, t, text(case)))
    teacher = predict_x0(x, t, guided(case, of["guidance"])(x, t, text(case)))
    for target, expected in ((teacher, ours), (case["x0"], theirs)):
        square = (prediction - target).square().flatten(1).sum(1)
        loss = ((square + of["c"] ** 2).sqrt() - of["c"]) / t.tan()
        assert error(loss[clean], expected[clean]) <= case.tolerance


def test_lcm_s_pseudo_huber_loss_is_that_of_the_whole_sample():
    """Sections 11 and 17: the release's is the mean over elements of each one's."""
    case = CASES["lcm-huber-elementwise"]
    c, pair = case.settings["c"], lcm_pair(case)
    ours, theirs = lcm_loss(case)["loss"], case.outputs["loss"]
    difference = (pair["prediction"] - pair["target"].detach()).flatten(1)
    whole = (difference.square().sum(1) + c**2).sqrt() - c
    torch.testing.assert_close(ours, whole.mean(), rtol=1e-12, atol=0)
    elements = ((difference.square() + c**2).sqrt() - c).mean()
    assert error(elements, theirs) <= case.tolerance
    assert ours > 5 * theirs


def steps_of(case: Case) -> torch.Tensor:
    """Return the steps of Stable Diffusion's schedule for the angles ``t``."""
    return (angles_of_schedule()[:, None] - case["t"]).abs().argmin(0)


def angles_of_schedule() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    signal = (1 - betas).cumprod(0)
    return ((1 - signal) / signal).sqrt().atan()


def test_lcm_s_predictions_have_no_boundary_coefficients():
    """Section 11: c_skip x + c_out x0 in the release, at q = 10 n; from the second step on nearly x0 itself."""
    case = CASES["lcm-boundary"]
    student, pair = case.net("student"), lcm_pair(case)
    q = 10 * steps_of(case).double()
    skip, out = 0.25 / (q**2 + 0.25), q / (q**2 + 0.25).sqrt()
    assert skip[q >= 20].max() < 1e-3
    column = [-1, *[1] * (pair["x"].ndim - 1)]
    prediction = predict_x0(pair["x"], case["t"], student(pair["x"], case["t"], text(case)))
    theirs = skip.reshape(column) * pair["x"] + out.reshape(column) * prediction
    # the release's coefficients are float32
    assert error(theirs, case.outputs["prediction"]) < 1e-6
    assert 1e-9 < error(prediction, case.outputs["prediction"]) < 1e-2
    c = 0.001
    loss = (((prediction - pair["target"].detach()).square() + c**2).sqrt() - c).mean()
    assert error(loss, case.outputs["loss"]) < 1e-2
    assert error(gradients(loss, student), case.outputs["grad_student"]) < 1e-2


def test_a_guidance_scale_is_embedded_in_a_form_of_our_own():
    """Section 16: the release has sines and cosines of 1000 w at falling frequencies, we cos k s/10 and sin k s/10."""
    case = CASES["lcm-embedding"]
    w, expected = case["w"], case.outputs["embedding"]
    half = expected.shape[1] // 2
    frequencies = (-math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - 1)).exp()
    phase = 1000 * w[:, None] * frequencies
    # the release computes in float32, whose rounding of 1000 w is 1e-4 of a turn
    assert error(torch.cat([phase.sin(), phase.cos()], 1), expected) < 1e-2
    s, k = (1 + w) / 10, torch.arange(1, FREQUENCIES + 1)
    ours = waves(s)
    torch.testing.assert_close(ours, torch.cat([(k * s[:, None]).cos(), (k * s[:, None]).sin()], 1))
    assert ours.shape[1] != expected.shape[1]
    embedding = Embedding(8).double()
    with torch.no_grad():
        embedding.layers[2].weight.normal_(generator=generator(0))
        assert not embedding(torch.zeros_like(s)).any()


def test_lcm_s_grid_is_one_of_flow_times():
    """Section 11: the release's is every 20th step of Stable Diffusion's schedule."""
    case = CASES["lcm-grid"]
    steps, angles = case.outputs["steps"].long(), case.outputs["angles"]
    assert steps.tolist() == [20 * i - 1 for i in range(1, 51)]
    assert error(angles_of_schedule()[steps], angles) < 1e-5
    method = preset("lcm-paper")
    pairs = [method._angles(1, generator(i))[0] for i in range(400)]
    ours = torch.unique(torch.cat(pairs))
    assert len(ours) == len(steps)
    torch.testing.assert_close(ours, torch.atan2(steps + 1.0, 999.0 - steps).double(), atol=1e-6, rtol=0)
    assert (ours - angles).abs().max() > 0.1

"""Run the cases of tests/oracle that are single terms: a loss with its networks, or a sampler."""

from __future__ import annotations

import math

import torch
from oracle import Case, Draws, Heads, Net
from spies import Spy, gradients
from torch import Tensor

from rcm_core.diffusion.guidance import Guided
from rcm_core.diffusion.parameterisation import TrigFlow
from rcm_core.diffusion.timesteps import fixed_angles, simulation_angles
from rcm_core.diffusion.trigflow import NOISE_ANGLE, conditional_velocity, diffuse, predict_x0
from rcm_core.jvp import consistency_jvp
from rcm_core.losses.consistency import consistency_loss, consistency_tangent, normalise_tangent
from rcm_core.losses.denoising import fake_score_loss
from rcm_core.losses.distribution_matching import distribution_gradient, distribution_loss
from rcm_core.losses.regression import pair_loss
from rcm_core.objectives.adversarial import Discriminator
from rcm_core.objectives.consistency import Consistency, States, consistency_term, limit_tangent, ramp
from rcm_core.objectives.distribution_matching import Generated, fake_score_term, generate, matching_term
from rcm_core.protocols import Batch, Condition, Networks
from rcm_core.rng import generator
from rcm_core.samplers.few_step import euler_steps, renoise_steps, sample_student
from rcm_core.samplers.rollout import record_trajectory, teacher_steps

Found = dict[str, Tensor]
RNG = generator("unused")


def text(case: Case) -> Condition:
    return {"text": case["condition"]}


def guided(case: Case, scale: float | Tensor | None) -> Guided:
    return Guided(case.net("teacher"), 1.0 if scale is None else scale, {"text": case["negative"]})


def student_of(case: Case) -> tuple[Net, Condition]:
    """Return the student, with a guidance input if the case has scales, and its condition."""
    condition = text(case)
    if "scales" not in case.inputs:
        return case.net("student"), condition
    return case.net("student", "guidance"), {**condition, "guidance": case["scales"]}


def spread(case: Case, elements: int) -> float:
    """Return our log-variance minus the release's, whose loss is a mean and whose prior has sigma_d."""
    of = case.settings
    prior = of.get("weighting", "adaptive_prior") == "adaptive_prior"
    return math.log(elements) + (math.log(of.get("sigma_data", 0.5)) if prior else 0.0)


def weighed(case: Case, student: Net, elements: int) -> Tensor:
    """Return the student's log-variance, for gradients."""
    student.spread = (case["log_variance"] + spread(case, elements)).requires_grad_()
    return student.spread


def states_of(case: Case, student_condition: Condition) -> tuple[States, Condition]:
    of, condition = case.settings, student_condition
    if "v" in case.inputs:
        count = len(case["x"]) // len(case["condition"])
        condition = {name: value.repeat(count, *[1] * (value.ndim - 1)) for name, value in condition.items()}
        keep = case["keep"].bool() if "keep" in case.inputs else None
        return States(case["x"], case["t"], case["v"], keep), condition
    x = diffuse(case["x0"], case["z"], case["t"])
    if of.get("learn_from", "teacher") == "data":
        return States(x, case["t"], conditional_velocity(case["x0"], case["z"], case["t"])), condition
    scale = case["scales"] if of["guidance"] == "scales" else of["guidance"]
    return States(x, case["t"], guided(case, scale)(x, case["t"], text(case))), condition


def consistency(case: Case, limit: str = "normalise") -> Found:
    of = case.settings
    student, condition = student_of(case)
    states, condition = states_of(case, condition)
    x, t, direction, keep = states
    weighting, elements = of.get("weighting", "adaptive_prior"), x[0].numel()
    r = of.get("r", ramp(of["step"], of["H"]))
    how = Consistency(
        of.get("tangent", "exact"),
        r,
        of.get("form", "scm"),
        limit,
        weighting,
        of.get("c", 0.1) / of.get("sigma_data", 1.0),
    )
    F, J = consistency_jvp(student, x, t, condition, direction, how.tangent)
    g = consistency_tangent(F, direction, J, x, t, r, how.form)
    target = limit_tangent(g, how.limit, how.constant)
    found = {"F_student": F, "F_teacher": direction, "J": J, "g": g, "g_normalised": target}
    each = of.get("weight", 1.0) * consistency_loss(F, target)
    shift = torch.zeros(())
    if weighting != "none":
        lv = weighed(case, student, elements)
        prior = 1 / t.tan() if weighting == "adaptive_prior" else 1.0
        each = (-lv).exp() * prior * each + lv - spread(case, elements)
        shift = lv
    term = of.get("weight", 1.0) * consistency_term(Networks(student), states, condition, how).loss
    # a release's mean includes the skipped points as zeros
    share = 1.0 if keep is None else float(keep.double().mean())
    found["grad_student"] = share * gradients(term, student)
    if weighting != "none":
        (found["grad_log_variance"],) = torch.autograd.grad(share * term, shift)
    found["loss"] = each if case.outputs.get("loss", each).ndim else each.mean()
    return {name: found[name] for name in case.outputs}


def rms(case: Case) -> Found:
    return consistency(case, "rms")


def normaliser(case: Case) -> Found:
    student, condition = student_of(case)
    x = case.settings["scale"] * diffuse(case["x0"], case["z"], case["t"])
    with torch.no_grad():
        direction = student(x, case["t"], condition)
        F, J = consistency_jvp(student, x, case["t"], condition, direction, "exact")
        g = consistency_tangent(F, direction, J, x, case["t"], 1.0, "rcm")
        return {"loss": case.settings["weight"] * consistency_loss(F, normalise_tangent(g))}


def simulation(case: Case) -> Tensor:
    """Return the angles of the simulation [n, B]."""
    of = case.settings
    if "angles" in case.inputs:
        return case["angles"]
    size = len(case["condition"])
    if of["fixed_times"] is not None:
        return fixed_angles((NOISE_ANGLE, *of["fixed_times"][: of["steps"] - 1]), size, torch.device("cpu"))
    return simulation_angles(case.inputs.get("drawn", torch.zeros(0, size, dtype=torch.float64)))


def matching(case: Case) -> Found:
    of, condition = case.settings, text(case)
    vp = TrigFlow() if case.method == "dmd2" else None  # its noises are first states
    student, fake, teacher = (
        Spy(case.net("student", parameterisation=vp)),
        case.net("fake"),
        guided(case, of["guidance"]),
    )
    if vp is not None:
        student.parameterisation = vp
    angles, t, eps = simulation(case), case["t"], case["eps"]
    batch = Batch(condition, {}, torch.zeros_like(eps))
    with Draws(noise=[case["noises"], eps]):
        made = generate(Networks(student), batch, angles, RNG)
        networks = Networks(student, guided_teacher=teacher, fake_score=fake)
        term = matching_term(networks, made, condition, t, RNG, of["floor"])
    with torch.no_grad():
        y = diffuse(made.x, eps, t)
        D_fake, D_teacher = (predict_x0(y, t, net(y, t, condition)) for net in (fake, teacher))
        gradient = distribution_gradient(made.x, D_teacher, D_fake, of["floor"])
    each = distribution_loss(made.x, gradient)
    half = of["loss"] == "half mean"
    scale = 1 / (2 * eps[0].numel()) if half else 1.0
    found = {
        "angles": angles,
        "states": torch.stack([call.x for call in student.calls]),
        "xg": made.x,
        "D_fake": D_fake,
        "D_teacher": D_teacher,
        "pseudo_gradient": gradient,
        "loss": scale * each.mean() if half else each,
        "grad_student": gradients(scale * term.loss, student),
    }
    return {name: found[name] for name in case.outputs}


ERRORS = {"F": "velocity", "eps": "noise", "x0": "data", "u": "flow"}


def fake_score(case: Case) -> Found:
    """Compute the fake score's loss; the release has a flaw as a setting, and the case sets the weight by hand."""
    of, condition, fake = case.settings, text(case), case.net("fake")
    t, eps = case["t"], case["eps"]
    if "xg" in case.inputs:
        made = Generated(case["xg"], torch.ones(len(eps), dtype=torch.bool))
    else:
        batch = Batch(condition, {}, torch.zeros_like(eps))
        with Draws(noise=[case["noises"]]), torch.no_grad():
            made = generate(Networks(case.net("student")), batch, simulation(case), RNG)
    kind = ERRORS[of["error"]]
    with Draws(noise=[eps]):
        loss = fake_score_term(Networks(fake, fake_score=fake), made, condition, t, RNG, kind).loss
    F = fake(diffuse(made.x, eps, t), t, condition)
    if "weighted" in of:
        weight = {"eps": t.cos() ** 2, "x0": t.sin() ** 2, "u": (t.cos() + t.sin()) ** 2}[of["weighted"]]
        loss = (weight * fake_score_loss(F, made.x, eps, t)).mean()
    scale = 1 / eps[0].numel() if of["mean"] else 1.0
    each = loss if of["mean"] else fake_score_loss(F, made.x, eps, t, kind)
    return {"loss": scale * each, "grad_fake": scale * gradients(loss, fake)}


def sampler(case: Case) -> Found:
    """Sample; ``whole``: from our own first state, else from the release's, with the first of the unit noises."""
    of, condition, noises = case.settings, text(case), case["noises"]
    vp = TrigFlow() if case.name == "release-first-state" else None
    student = case.net("student", parameterisation=vp)
    if of["whole"]:
        return {"x0": sample_student(student, noises, condition, of["angles"], of["kind"])}
    spy = Spy(student)
    angles = fixed_angles(of["angles"], noises.shape[1], noises.device)
    first = case.outputs["states"][0]
    with torch.no_grad():
        if of["kind"] == "renoise":
            x = renoise_steps(spy, torch.cat([first[None], noises[1:]]), condition, angles)
        else:
            x = euler_steps(spy, first, condition, angles)
        x0 = predict_x0(x, angles[-1], spy(x, angles[-1], condition))
    return {"states": torch.stack([call.x for call in spy.calls]), "x0": x0}


def judged(
    case: Case, x: Tensor, s: Tensor, eps: Tensor, heads: Heads | None = None, backbone: Net | None = None
) -> tuple[Tensor, Heads]:
    of = case.settings
    heads = heads or Heads(case["heads"])
    backbone = backbone or case.net(of["backbone"])
    backbone.tokens = torch.tensor(of["tokens"], dtype=torch.float64)
    networks = Networks(backbone, discriminator=heads)
    return Discriminator(backbone, range(len(case["heads"]))).logits_with_noise(
        networks, x, text(case), s, eps
    ), heads


def pseudo_gradient(case: Case) -> Found:
    found = distribution_gradient(case["xg"], case["D_teacher"], case["D_fake"], case.settings["floor"])
    return {"pseudo_gradient": found}


def tbcm_route(case: Case) -> Found:
    route = record_trajectory(guided(case, case["scales"]), case["noise"], case["route"], text(case))
    return {"x": route.x[1:].flatten(0, 1), "v": route.F[1:].flatten(0, 1), "end": route.end}


def lcm_pair(case: Case) -> Found:
    t, s = case["t"], case["s"]
    student, target, condition = case.net("student"), case.net("target"), text(case)
    x = diffuse(case["x0"], case["z"], t)
    near = teacher_steps(guided(case, case["scales"]), x, torch.stack([t, s]), text(case), "rotate")
    prediction = predict_x0(x, t, student(x, t, condition))
    return {
        "x": x,
        "x_prev": near,
        "prediction": prediction,
        "target": predict_x0(near, s, target(near, s, condition)),
    }


def lcm_loss(case: Case) -> Found:
    student, condition = case.net("student"), text(case)
    pair = lcm_pair(case)
    found = predict_x0(pair["x"], case["t"], student(pair["x"], case["t"], condition))
    of = case.settings
    loss = of["scale"] * pair_loss(found, pair["target"], of["loss"], of["c"]).mean()
    return {"loss": loss, "grad_student": gradients(loss, student)}


RUNS = {
    "consistency": consistency,
    "none": rms,  # for the kind "none" only sCM's option exists
    "normaliser": normaliser,
    "matching": matching,
    "fake_score": fake_score,
    "sampler": sampler,
    "pseudo_gradient": pseudo_gradient,
    "tbcm_route": tbcm_route,
    "lcm": lcm_pair,
    "lcm_loss": lcm_loss,
}

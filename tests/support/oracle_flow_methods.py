"""Run the cases of tests/oracle of the methods TBCM, MeanFlow, ECT, LCM and KD."""

from __future__ import annotations

import pytest
import torch
from oracle import Case, Draws
from oracle_methods import RNG, Found, per_sample_teacher, run, scale_indices, weighed_gradients
from oracle_terms import guided, text, weighed
from spies import gradients, preset

from rcm_core.diffusion.trigflow import angle_from_flow_time, conditional_velocity, diffuse
from rcm_core.jvp import TangentKind
from rcm_core.losses.meanflow import average_velocity_target, meanflow_loss, normalised_loss
from rcm_core.methods.lcm import LCM
from rcm_core.objectives.consistency import States, ramp
from rcm_core.objectives.meanflow import AverageVelocity, along
from rcm_core.objectives.meanflow import guide as self_guided
from rcm_core.protocols import Batch, Networks, TeacherTrajectory
from rcm_core.samplers.rollout import reference_route


def tbcm(case: Case) -> Found:
    of, route = case.settings, case["route"]
    reference = reference_route(of["steps"], of["shift"])
    share = (route[1:] - reference[1:]) / (reference[:-1] - reference[1:])
    method = preset(
        "tbcm-sana-0.6b",
        trajectory_steps=of["steps"],
        shift=of["shift"],
        pairs=of["steps"] - 1,
        degenerate_below=None,
        tangent_constant=0.2,
    )
    student = case.net("student", "guidance")
    lv = weighed(case, student, case["noise"][0].numel())
    nets = {"student": student, "guided_teacher": per_sample_teacher(case)}
    batch = Batch(text(case), {}, torch.zeros_like(case["noise"]))
    integers = [scale_indices(case), torch.arange(of["steps"] - 1)]
    with Draws(noise=[case["noise"]], uniform=[share], integers=integers):
        (update,) = method.updates(Networks(**nets), batch, of["step"], RNG)
    return weighed_gradients(update, student, lv)


def meanflow(case: Case) -> Found:
    """Compute the parts of an update, and the whole update of ``meanflow_method``, which must be equal."""
    of = case.settings
    student, x0, z, tau, end = case.net("student", "end"), case["x0"], case["z"], case["tau"], case["end"]
    t = angle_from_flow_time(tau)
    x = diffuse(x0, z, t)
    dropped = case["dropped"].bool() if "dropped" in case.inputs else torch.zeros(len(x0), dtype=torch.bool)
    condition = {"text": torch.where(dropped[:, None], case["negative"], case["condition"])}
    if of["learn_from"] == "teacher":
        direction = guided(case, of["guidance"])(x, t, condition)
    else:
        direction = conditional_velocity(x0, z, t)
    state = along(States(x, t, direction))
    if of["omega"] is not None:
        rows = ~dropped & (of["interval"][0] <= tau) & (tau <= of["interval"][1])
        null = {"text": case["negative"].expand(len(x0), -1)}
        state = self_guided(student, state, (condition, null), (of["omega"], of["kappa"]), rows)
    average = AverageVelocity(student, condition, end)
    derivative = average.derivative(state, of["tangent"])
    target = average_velocity_target(state.v, derivative, tau, end, ramp(of["step"], of["H"]))
    u = average(state.x, tau)
    form = meanflow_loss if of["limit"] == "weight" else normalised_loss
    each = form(u, target, of["power"], of["constant"])
    found = {
        "v": state.v,
        "derivative": derivative,
        "u": u,
        "loss": each if case.outputs["loss"].ndim else each.mean(),
        "grad_student": gradients(each.mean(), student),
    }
    return {name: found[name] for name in case.outputs}


def meanflow_difference(case: Case) -> Found:
    """Compute the rows whose times differ."""
    t = angle_from_flow_time(case["tau"])
    x = diffuse(case["x0"], case["z"], t)
    state = along(States(x, t, guided(case, case.settings["guidance"])(x, t, text(case))))
    average = AverageVelocity(case.net("student", "end"), text(case), case["end"])
    kind: TangentKind = "discrete"
    return {"derivative": average.derivative(state, kind)[case["end"] < case["tau"]]}


def meanflow_method(case: Case) -> Found:
    of = case.settings
    dropped = case["dropped"].double() if "dropped" in case.inputs else torch.zeros(4, dtype=torch.float64)
    mix = None
    if of["omega"] is not None:
        mix = {"omega": of["omega"], "kappa": of["kappa"], "interval": of["interval"]}
    method = preset(
        "meanflow",
        learn_from=of["learn_from"],
        condition_dropout=0.5,
        self_guidance=mix,
        time_mean=0.0,
        time_std=1.0,
        average_share=1.0,
        warmup=of["H"],
        limit=of["limit"],
        power=of["power"],
        constant=of["constant"],
    )
    times = torch.stack([case["tau"], case["end"]]).logit()
    (update,), student = run(
        case,
        method,
        of["step"],
        student=case.net("student", "end"),
        teacher=of["guidance"],
        normal=[times],
        uniform=[torch.zeros(4), 1 - dropped],
        noise=[case["z"]],
    )
    return {"loss": update.loss, "grad_student": gradients(update.loss, student)}


def ect(case: Case) -> Found:
    """Compute the whole update; losses per sample come from batches of one."""
    of = case.settings
    every = 10
    method = preset(
        "ect",
        learn_from=of["learn_from"],
        base=float(of["q"]),
        stage_every=every,
        steepness=of["k"],
        p_mean=of["mean"],
        p_std=1.0,
        loss=of["loss"],
        huber=of["c"],
        slope=0.5 if case.name == "release-deviation-0.5" else 1.0,
    )
    scale, step = of.get("guidance"), of["stage"] * every
    (update,), student = run(case, method, step, teacher=scale, normal=[case["normal"]], noise=[case["z"]])
    found = {"grad_student": gradients(update.loss, student)}
    if "loss" not in case.outputs:
        return found
    each = []
    for i in range(len(case["x0"])):
        row = slice(i, i + 1)
        one = {name: case[name][row] for name in ("x0", "z", "condition", "normal")}
        alone = Case(**(vars(case) | {"inputs": {**case.inputs, **one}}))
        (update,), _ = run(alone, method, step, teacher=scale, normal=[alone["normal"]], noise=[alone["z"]])
        each.append(update.loss)
    return {"loss": torch.stack(each), **found}


def lcm(case: Case) -> Found:
    """Compute at the release's angles, which are not on our grid."""
    of, scales = case.settings, tuple(case["scales"].tolist())
    method = preset("lcm", loss=of["loss"], huber=of["c"], guidance=scales, guidance_at=scales[0])
    others = {"guided_teacher": per_sample_teacher(case), "target": case.net("target")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LCM, "_angles", lambda *_: torch.stack([case["t"], case["s"]]))
        (update,), student = run(
            case, method, 0, others=others, noise=[case["z"]], integers=[torch.arange(4)]
        )
    loss = of["scale"] * update.loss
    return {"loss": loss, "grad_student": gradients(loss, student)}


def kd(case: Case) -> Found:
    """Compute the update; the project's loss is the sum of squares."""
    method = preset("kd", loss="l2", start_share=1.0)
    student = case.net("student")
    route = TeacherTrajectory(case["x"][:, None], case["t"][:, None], torch.zeros_like(case["x"])[:, None])
    batch = Batch(text(case), {}, case["x0"], route=route)
    with Draws(integers=[torch.zeros(4)], uniform=[torch.zeros(4)]):
        (update,) = method.updates(Networks(student), batch, 0, RNG)
    loss = update.loss / case.settings["scale"]
    return {"loss": loss, "grad_student": gradients(loss, student)}


RUNS = {
    "tbcm_method": tbcm,
    "meanflow": meanflow,
    "meanflow_difference": meanflow_difference,
    "meanflow_method": meanflow_method,
    "ect": ect,
    "lcm_method": lcm,
    "kd": kd,
}

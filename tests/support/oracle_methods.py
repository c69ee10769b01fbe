"""Runs the cases of tests/oracle that are whole updates: a method with the random numbers that its release drew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from oracle import Case, Draws, Heads, Net
from oracle_terms import guided, text, weighed
from spies import gradients, preset
from torch import Tensor

from rcm_core.diffusion.parameterisation import TrigFlow
from rcm_core.diffusion.trigflow import angle_from_flow_time, conditional_velocity, diffuse, predict_x0
from rcm_core.jvp import TangentKind
from rcm_core.losses.meanflow import average_velocity_target, meanflow_loss, normalised_loss
from rcm_core.methods.lcm import LCM
from rcm_core.objectives.consistency import States, ramp
from rcm_core.objectives.meanflow import AverageVelocity, along
from rcm_core.objectives.meanflow import guide as self_guided
from rcm_core.protocols import FIELDS, Batch, Condition, Examples, Networks, TeacherTrajectory, Update
from rcm_core.rng import generator
from rcm_core.samplers.rollout import reference_route

Found = dict[str, Tensor]
RNG = generator("unused")
ANY = torch.full((4,), 0.5, dtype=torch.float64)
"""Uniform numbers on which nothing that is compared depends."""


def log_tan(t: Tensor) -> Tensor:
    """The normal numbers from which ``log_normal_angles(mean 0, std 1)`` makes ``t``."""
    return t.tan().log()


PLAIN = {"p_mean": 0.0, "p_std": 1.0}


def batch_of(case: Case, x0: Tensor, condition: Condition | None = None) -> Batch:
    condition = condition or text(case)
    negative = {"text": case["negative"]} if "negative" in case.inputs else {}
    return Batch(condition, negative, x0, Examples(x0, condition))


def total(updates: list[Update], net: torch.nn.Module) -> Tensor:
    return torch.stack([gradients(update.loss, net) for update in updates]).sum(0)


def rcm(case: Case) -> Found:
    """The first of the normal numbers is the consistency's; a step of the fake score does not use it."""
    of = case.settings
    method = preset(
        "rcm",
        warmup=of["H"],
        student_every=of["K"],
        simulation_steps=of["N"],
        p_mean=of["mean_G"],
        p_std=of["std_G"],
        dmd_mean=of["mean_D"],
        dmd_std=of["std_D"],
    )
    nets = {
        "student": case.net("student"),
        "fake_score": case.net("fake"),
        "guided_teacher": guided(case, of["guidance"]),
    }
    first = 0 if "grad_student" in case.outputs else 1
    with Draws(normal=[case["normals"][first:]], noise=[case["noises"]]):
        updates = list(method.updates(Networks(**nets), batch_of(case, case["x0"]), of["iteration"], RNG))
    role = "fake" if first else "student"
    return {
        "losses": torch.stack([update.loss for update in updates]),
        f"grad_{role}": total(updates, nets[FIELDS[role]]),  # type: ignore[arg-type]
    }


def dcm(case: Case) -> Found:
    of = case.settings
    method = preset(
        "dcm",
        points=of["N"],
        skip=of["k"],
        shift=of["shift"],
        solver=of["solver"],
        consistency_weight=of["weight"],
    )
    if "angles" in case.outputs:
        return dcm_pair(case, method)
    (update,), student = run(case, method, 0, teacher=of["guidance"], noise=[case["z"]], uniform=[case["u"]])
    return {"loss": update.loss, "grad_student": gradients(update.loss, student)}


def dcm_pair(case: Case, method: Any) -> Found:
    """The same update, sample by sample and with what it asked its networks."""
    student = case.net("student")
    spies = {
        "student": Recorder(student),
        "guided_teacher": Recorder(guided(case, case.settings["guidance"])),
    }
    with Draws(noise=[case["z"]], uniform=[case["u"]]):
        (update,) = method.updates(Networks(**spies), batch_of(case, case["x0"]), 0, RNG)
    near, first = spies["student"].calls
    route = [*spies["guided_teacher"].calls, near]
    losses = case.settings["weight"] * (first[2] - near[2]).square().flatten(1).sum(1)
    torch.testing.assert_close(losses.mean(), update.loss)
    return {
        "angles": torch.stack([t for _, t, _ in route]),
        "states": torch.stack([x for x, _, _ in route]),
        "prediction": first[2],
        "loss": losses,
        "grad_student": gradients(update.loss, student),
    }


class Recorder(torch.nn.Module):
    """``velocity``, with the state, the angle and the clean prediction of every call."""

    def __init__(self, velocity: Any) -> None:
        super().__init__()
        self.velocity = velocity
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        F = self.velocity(x, t, condition)
        self.calls.append((x.detach(), t, predict_x0(x, t, F).detach()))
        return F


def run(
    case: Case,
    method: Any,
    step: int,
    *,
    student: Net | None = None,
    teacher: float | Tensor | None = None,
    x0: Tensor | None = None,
    others: Mapping[str, Any] | None = None,
    **draws: Any,
) -> tuple[list[Update], Net]:
    """All updates of ``step``, and the student."""
    student = student or case.net("student")
    nets = {"student": student, **(others or {})}
    if "teacher.W1" in case.inputs:
        nets.setdefault("guided_teacher", guided(case, teacher))
    with Draws(**draws):
        return list(
            method.updates(Networks(**nets), batch_of(case, case["x0"] if x0 is None else x0), step, RNG)
        ), student


def scm(case: Case) -> Found:
    of = case.settings
    method = preset(
        "scm",
        **PLAIN,
        learn_from=of["learn_from"],
        warmup=of["H"],
        weighting="adaptive_prior",
        consistency_weight=1.0,
        tangent_constant=0.1 / of["sigma_data"],
    )
    student = case.net("student")
    lv = weighed(case, student, case["x0"][0].numel())
    draws = {"normal": [log_tan(case["t"])], "noise": [case["z"]]}
    (update,), _ = run(case, method, of["step"], student=student, teacher=of.get("guidance"), **draws)
    return weighed_gradients(update, student, lv)


def weighed_gradients(update: Update, student: Net, lv: Tensor) -> Found:
    (slope,) = torch.autograd.grad(update.loss, lv, retain_graph=True)
    return {"grad_student": gradients(update.loss, student), "grad_log_variance": slope}


def per_sample_teacher(case: Case) -> Any:
    """The teacher guided at the scales of the condition, as FrozenTeacher."""

    def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return guided(case, condition["guidance"].double())(x, t, {"text": condition["text"]})

    return velocity


SCALES = (4.0, 4.5, 5.0)


def scale_indices(case: Case) -> Tensor:
    return torch.tensor([SCALES.index(float(scale)) for scale in case["scales"]])


def sana(case: Case) -> Found:
    """Angles are given; a discriminator's update is that of an odd iteration."""
    of = case.settings
    blocks = range(len(case["heads"]))
    changes = {
        **PLAIN,
        "warmup": of["H"],
        "tangent_constant": 0.2,
        "critic_mean": 0.0,
        "critic_std": 1.0,
        "guidance": SCALES,
        "guidance_at": 4.5,
        "blocks": list(blocks),
    }
    student, heads, backbone = case.net("student", "guidance"), Heads(case["heads"]), case.net("teacher")
    backbone.tokens = torch.tensor(of["tokens"], dtype=torch.float64)
    nets = {
        "student": student,
        "discriminator": heads,
        "teacher": backbone,
        "guided_teacher": per_sample_teacher(case),
    }
    batch, integers = batch_of(case, case["x0"]), [scale_indices(case)]
    if of["part"] == "consistency":
        lv = weighed(case, student, case["x0"][0].numel())
        method = preset("sana_sprint", **changes)
        with Draws(normal=[log_tan(case["t"])], noise=[case["z"]], integers=integers):
            return weighed_gradients(
                next(method.updates(Networks(**nets), batch, of["iteration"], RNG)), student, lv
            )
    method = preset("sana_sprint", **changes, consistency_weight=0.0)
    seen = ["s"] if of["part"] == "adversarial" else ["s_real", "s_fake", "s_rolled"]
    with Draws(
        normal=[log_tan(case["t_new"]), *(log_tan(case[name]) for name in seen)],
        noise=[case["z_new"], *(case[name.replace("s", "eps", 1)] for name in seen)],
        uniform=[case["uniform"]],
        integers=integers,
    ):
        (update,) = method.updates(Networks(**nets), batch, 0 if len(seen) == 1 else 1, RNG)
    moved = {"grad_student": student} if len(seen) == 1 else {"grad_heads": heads}
    return {"loss": update.loss, **{name: gradients(update.loss, net) for name, net in moved.items()}}


def dmd2(case: Case) -> Found:
    """Iteration 0 is the student's, iteration 1 the fake score's and the discriminator's."""
    of = case.settings
    parameterisation = TrigFlow() if case.name == "method-release" else None
    student = case.net("student", parameterisation=parameterisation)
    fake, heads = case.net("fake"), Heads(case["heads"])
    nets = {
        "student": student,
        "fake_score": fake,
        "discriminator": heads,
        "guided_teacher": guided(case, of["guidance"]),
        "teacher": case.net("teacher"),
    }
    method = preset(
        "dmd2",
        simulation_steps=1,
        simulation_start=of["start"],
        dmd_shift=1.0,
        gan_weight=of["gan_weight"],
        gan_critic_weight=1.0,
        gan_blocks=list(range(len(case["heads"]))),
        gan_backbone={"fake": "fake_score", "unguided": "teacher"}[of["backbone"]],
        gan_shared_noise=of["shared"],
    )
    batch = Batch(text(case), {}, torch.zeros_like(case["real"]), Examples(case["real"], text(case)))
    uniform, noise = [case["tau"], case["tau_student"]], [case["noise"], case["eps"], case["eps_student"]]
    with Draws(uniform=uniform, noise=noise):
        (first,) = method.updates(Networks(**nets), batch, 0, RNG)
        moved = gradients(first.loss, student)
    uniform = [ANY, case["tau_fake"]]
    noise = [case["noise"], case["eps"], case["eps_fake"]]
    if not of["shared"]:
        uniform, noise = [*uniform, case["tau_real"]], [*noise, case["eps_real"]]
    with Draws(uniform=uniform, noise=noise):
        _, critic = method.updates(Networks(**nets), batch, 1, RNG)
    return {
        "loss_student": first.loss,
        "grad_student": moved,
        "loss_critic": critic.loss,
        "grad_heads": gradients(critic.loss, heads),
    }


def cdm(case: Case) -> Found:
    """All of the student's updates together; the fake score's comes first."""
    of = case.settings
    weights = {"augmentation_weight": "CA", "matching_weight": "DM", "off_weight": "CDM"}
    chosen = {name: float(loss in of["losses"]) for name, loss in weights.items()}
    low, high = 0.25, 0.95
    method = preset(
        "cdm",
        **(
            chosen
            | ({"matching_weight": 1e-300} if chosen["off_weight"] + chosen["matching_weight"] == 0 else {})
        ),
        student_every=1,
        rollout_shift=of["shift"],
        alpha=of["alpha"],
        floor=of["floor"],
        compare_low=of["low"],
        compare_high=of["high"],
    )
    student = Recorder(case.net("student"))
    null = {"text": case["negative"]}

    def unconditional(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return case.net("teacher")(x, t, {"text": null["text"].expand(len(x), -1)})

    others = {
        "fake_score": case.net("fake"),
        "teacher": case.net("teacher"),
        "unconditional_teacher": unconditional,
    }
    augments, off = chosen["augmentation_weight"] > 0, chosen["off_weight"] > 0
    q = ["q_ft", "q_ddm", *(["q_cfg"] if augments else []), *(["q_away", "q_off"] if off else [])]
    z = ["z_ft", "z_ddm", *(["z_cfg"] if augments else []), *(["z_off"] if off else [])]
    nets = {"student": student, **others}
    batch = Batch(text(case), {}, torch.zeros_like(case["noise"]))
    count = len(case["sigmas"])
    with (
        Draws(
            integers=[torch.tensor([count]), case["anchors"]],
            uniform=[(case["sigmas"][1:] - low) / (high - low), *(case[name] for name in q)],
            noise=[case["noise"], *(case[name] for name in z)],
        ),
        torch.enable_grad(),
    ):
        _, *updates = method.updates(Networks(**nets), batch, 0, RNG)
    route = student.calls[:count]
    return {
        "angles": torch.stack([t[0] for _, t, _ in route]),
        "states": torch.stack([x for x, _, _ in route]),
        "loss": torch.stack([update.loss for update in updates]).sum(),
        "grad_student": total(updates, student),
    }


def tbcm(case: Case) -> Found:
    of, route = case.settings, case["route"]
    reference = reference_route(of["steps"], of["shift"])
    share = (route[1:] - reference[1:]) / (reference[:-1] - reference[1:])
    method = preset(
        "tbcm-sana-0.6b",
        route_steps=of["steps"],
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
    """The parts of an update, and the whole update of ``meanflow_method``, which must be the same."""
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
    """Rows whose times differ."""
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
    """The whole update; losses per sample are those of batches of one."""
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
    """At the release's angles, which are not on our grid."""
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
    """The product's loss is the sum of squares."""
    method = preset("kd", loss="l2", start_share=1.0)
    student = case.net("student")
    route = TeacherTrajectory(case["x"][:, None], case["t"][:, None], torch.zeros_like(case["x"])[:, None])
    batch = Batch(text(case), {}, case["x0"], route=route)
    with Draws(integers=[torch.zeros(4)], uniform=[torch.zeros(4)]):
        (update,) = method.updates(Networks(student), batch, 0, RNG)
    loss = update.loss / case.settings["scale"]
    return {"loss": loss, "grad_student": gradients(loss, student)}


RUNS = {
    "rcm_whole": rcm,
    "dcm": dcm,
    "dcm_method": dcm,
    "scm_method": scm,
    "sana_method": sana,
    "dmd2_method": dmd2,
    "cdm": cdm,
    "tbcm_method": tbcm,
    "meanflow": meanflow,
    "meanflow_difference": meanflow_difference,
    "meanflow_method": meanflow_method,
    "ect": ect,
    "lcm_method": lcm,
    "kd": kd,
}

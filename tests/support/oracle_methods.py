"""Run the cases of tests/oracle that are whole updates: a method with the random numbers of its release."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from oracle import Case, Draws, Heads, Net
from oracle_terms import guided, text, weighed
from spies import gradients, preset
from torch import Tensor

from rcm_core.diffusion.trigflow import predict_x0
from rcm_core.protocols import FIELDS, Batch, Condition, Examples, Networks, Update
from rcm_core.rng import generator

Found = dict[str, Tensor]
RNG = generator("unused")
ANY = torch.full((4,), 0.5, dtype=torch.float64)
"""Uniform numbers that do not affect any compared value."""


def log_tan(t: Tensor) -> Tensor:
    """Return the normal numbers from which ``log_normal_angles(mean 0, std 1)`` computes ``t``."""
    return t.tan().log()


PLAIN = {"p_mean": 0.0, "p_std": 1.0}


def batch_of(case: Case, x0: Tensor, condition: Condition | None = None) -> Batch:
    condition = condition or text(case)
    negative = {"text": case["negative"]} if "negative" in case.inputs else {}
    return Batch(condition, negative, x0, Examples(x0, condition))


def total(updates: list[Update], net: torch.nn.Module) -> Tensor:
    return torch.stack([gradients(update.loss, net) for update in updates]).sum(0)


def rcm(case: Case) -> Found:
    """Run rCM. The first normal number belongs to the consistency term; a step of the fake score does not use it."""
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
    """Run the same update sample by sample, and record the calls of its networks."""
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
    """``velocity`` that records the state, the angle and the clean prediction of every call."""

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
    """Return all updates of ``step``, and the student."""
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
    """Return the teacher guided at the condition's per-sample scales, as FrozenTeacher is."""

    def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return guided(case, condition["guidance"].double())(x, t, {"text": condition["text"]})

    return velocity


SCALES = (4.0, 4.5, 5.0)


def scale_indices(case: Case) -> Tensor:
    return torch.tensor([SCALES.index(float(scale)) for scale in case["scales"]])


def sana(case: Case) -> Found:
    """Run SANA-Sprint at the case's angles; the discriminator is updated in odd iterations."""
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


RUNS = {
    "rcm_whole": rcm,
    "dcm": dcm,
    "dcm_method": dcm,
    "scm_method": scm,
    "sana_method": sana,
}

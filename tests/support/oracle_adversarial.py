"""Run the cases of tests/oracle that are losses of a discriminator."""

from __future__ import annotations

import torch
from oracle import Case, Heads
from oracle_terms import Found, judged, student_of
from spies import gradients

from rcm_core.diffusion.trigflow import diffuse, predict_x0
from rcm_core.losses.adversarial import hinge_critic, hinge_student, logistic_critic, logistic_student


def adversarial_student(case: Case) -> Found:
    of = case.settings
    student, condition = student_of(case)
    x = case["x"] if "x" in case.inputs else diffuse(case["x0"], case["z"], case["t"])
    made = predict_x0(x, case["t"], student(x, case["t"], condition))
    logits = judged(case, made, case["s"], case["eps"])[0]
    loss = {"hinge": hinge_student, "logistic": logistic_student}[of["form"]]
    value = of["weight"] * loss(logits).mean()
    return {"loss": value, "grad_student": gradients(value, student)}


def adversarial_critic(case: Case) -> Found:
    of = case.settings
    loss = {"hinge": hinge_critic, "logistic": logistic_critic}[of["form"]]
    heads, backbone = Heads(case["heads"]), case.net(of["backbone"])
    both = heads, backbone
    real, fake = (
        judged(case, case[x], case[f"s_{name}"], case[f"eps_{name}"], *both)[0]
        for x, name in (("real", "real"), ("fake_x0", "fake"))
    )
    each = [loss(real, fake)]
    if of["misaligned"]:
        x = case["real"].roll(1, 0)
        each.append(loss(real, judged(case, x, case["s_rolled"], case["eps_rolled"], *both)[0]))
    value = torch.stack(each).mean(0).mean()
    found = {"loss": value, "grad_heads": gradients(value, heads), "grad_fake": gradients(value, backbone)}
    return {name: found[name] for name in case.outputs}


RUNS = {
    "adversarial_student": adversarial_student,
    "adversarial_critic": adversarial_critic,
}

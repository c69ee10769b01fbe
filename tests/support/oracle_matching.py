"""Run the cases of tests/oracle of the pure distribution-matching methods: DMD2, CDM."""

from __future__ import annotations

import torch
from oracle import Case, Draws, Heads
from oracle_methods import ANY, RNG, Found, Recorder, total
from oracle_terms import guided, text
from spies import gradients, preset
from torch import Tensor

from rcm_core.diffusion.parameterisation import TrigFlow
from rcm_core.protocols import Batch, Condition, Examples, Networks


def dmd2(case: Case) -> Found:
    """Run iteration 0, which updates the student, and iteration 1, which updates fake score and discriminator."""
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
    """Run the fake score's update first, then all student updates together."""
    of = case.settings
    weights = {"augmentation_weight": "CA", "matching_weight": "DM", "off_trajectory_weight": "CDM"}
    chosen = {name: float(loss in of["losses"]) for name, loss in weights.items()}
    low, high = 0.25, 0.95
    method = preset(
        "cdm",
        **(
            chosen
            | (
                {"matching_weight": 1e-300}
                if chosen["off_trajectory_weight"] + chosen["matching_weight"] == 0
                else {}
            )
        ),
        student_every=1,
        rollout_shift=of["shift"],
        alpha=of["alpha"],
        min_normaliser=of["floor"],
        matching_time_min=of["low"],
        matching_time_max=of["high"],
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
    augments, off = chosen["augmentation_weight"] > 0, chosen["off_trajectory_weight"] > 0
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


RUNS = {
    "dmd2_method": dmd2,
    "cdm": cdm,
}

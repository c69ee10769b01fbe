"""Run the cases of tests/oracle about times, ramps, schedules, averages and conversions."""

from __future__ import annotations

import torch
from oracle import Case, Draws
from spies import Spy, preset
from torch import Tensor

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.timesteps import log_normal_angles, shifted_angles
from rcm_core.diffusion.trigflow import flow_time_from_angle, predict_x0
from rcm_core.objectives.consistency import ramp
from rcm_core.protocols import Batch, Networks
from rcm_core.rng import generator
from rcm_core.samplers.rollout import random_schedule, reference_route, route_angles
from rcm_core.training.ema import decay, power_exponent
from rcm_core.training.parallel.collectives import move_towards

Found = dict[str, Tensor]
RNG = generator("unused")


def ramps(case: Case) -> Found:
    steps = [int(step) for step in case["steps"]]
    rows = [[ramp(step, length) for step in steps] for length in case.settings["H"]]
    return {"r": torch.tensor(rows, dtype=torch.float64)}


def sana_ramp(case: Case) -> Found:
    """Compute the ramp; the student's n-th update is iteration 2 n."""
    steps = [2 * int(update) for update in case["updates"]]
    return {"r": torch.tensor([ramp(step, case.settings["warmup"]) for step in steps], dtype=torch.float64)}


def tbcm_ramp(case: Case) -> Found:
    method = preset("tbcm-sana-0.6b")
    return {"r": torch.tensor([method._r(int(step)) for step in case["steps"]], dtype=torch.float64)}


def times(case: Case) -> Found:
    of = case.settings
    if of["map"] == "log_normal":
        with Draws(normal=[case["normal"]]):
            return {"t": log_normal_angles(len(case["normal"]), of["mean"], of["std"], RNG)}
    with Draws(uniform=[case["uniform"]]):
        t = shifted_angles(len(case["uniform"]), of["shift"], RNG)
    return {"tau": flow_time_from_angle(t)} if "tau" in case.outputs else {"t": t}


def conversion(case: Case) -> Found:
    flow, x, t = RectifiedFlow(1000.0), case["x"], case["t"]
    inputs, time = flow.to_network(x, t)
    F = flow.velocity(x, t, case["u"])
    return {"input": inputs, "time": time, "F": F, "D": predict_x0(x, t, F)}


def rcm_schedule(case: Case) -> Found:
    """Count the simulated steps: student calls in the last update, which matches or trains the fake score."""
    of = case.settings
    method = preset("rcm", warmup=of["H"], student_every=of["K"], simulation_steps=of["N"])
    x0 = torch.zeros(1, 2, 1, 1, 1)
    student, simulated = [], []
    for i in (int(i) for i in case["iterations"]):
        nets = {name: Spy(lambda x, t, condition: x) for name in ("student", "guided_teacher", "fake_score")}
        updates = method.updates(Networks(**nets), Batch({}, {}, x0), i, generator(0, i))
        moves = method.student_update(i)
        consistency = next(updates) if moves else None
        nets["student"].calls.clear()
        found = list(updates)
        assert consistency is None or consistency.roles == ("student",)
        assert all(update.roles == (("student",) if moves else ("fake",)) for update in found)
        student.append(moves)
        simulated.append(len(nets["student"].calls))
    return {"student": torch.tensor(student), "simulated": torch.tensor(simulated)}


def dmd2_schedule(case: Case) -> Found:
    method = preset("dmd2", student_every=case.settings["K"])
    return {"student": torch.tensor([method.student_update(int(i)) for i in case["iterations"]])}


def cdm_schedule(case: Case) -> Found:
    method = preset("cdm", student_every=case.settings["R"])
    return {"student": torch.tensor([method.student_update(int(i)) for i in case["iterations"]])}


def ema(case: Case) -> Found:
    """Compute the EMA; the releases keep the exponent in float32."""
    exponent = power_exponent(case.settings["length"])
    beta = [decay(exponent, int(update)) for update in case["updates"]]
    return {"exponent": torch.tensor([exponent]), "beta": torch.tensor(beta, dtype=torch.float64)}


def merge(case: Case) -> Found:
    follower = case["follower"].clone()
    move_towards([follower], [case["leader"]], case.settings["rate"])
    return {"follower": follower}


def cdm_times(case: Case) -> Found:
    of = case.settings
    with Draws(uniform=[case["uniform"]]):
        t = random_schedule(of["count"], of["low"], of["high"], of["shift"], RNG)
    return {"tau": flow_time_from_angle(t)}


def tbcm_reference(case: Case) -> Found:
    return {"t": reference_route(case.settings["steps"], case.settings["shift"])}


def tbcm_stratified(case: Case) -> Found:
    """Compute stratified angles: low + u (high - low) for a uniform number u."""
    steps, shift, u = case.settings["steps"], case.settings["shift"], case["uniform"]
    found = []
    for draws in (torch.zeros_like(u), torch.ones_like(u), u):
        with Draws(uniform=[draws]):
            found.append(route_angles("stratified", steps, shift, 0.0, 1.0, RNG)[1:])
    low, high, drawn = found
    torch.testing.assert_close(drawn, low + u * (high - low))
    return {"low": low, "high": high}


def meanflow_times(case: Case) -> Found:
    of = case.settings
    size = case["normal"].shape[1]
    method = preset("meanflow", time_mean=of["mean"], time_std=of["std"], average_share=1.0)
    with Draws(normal=[case["normal"]], uniform=[torch.zeros(size)]):
        tau, end = method._times(size, RNG)
    return {"tau": tau, "end": end}


def ect_map(case: Case) -> Found:
    of = case.settings
    slope = 0.5 if case.name == "mapping-deviation-0.5" else 1.0
    method = preset("ect", base=of["q"], stage_every=of["stage_every"], steepness=8.0, slope=slope)
    near = [method.nearer(case["t"], int(step)).tan() for step in case["steps"]]
    return {"near": torch.stack(near)}


RUNS = {
    "ramp": ramps,
    "sana_ramp": sana_ramp,
    "tbcm_ramp": tbcm_ramp,
    "times": times,
    "conversion": conversion,
    "rcm_schedule": rcm_schedule,
    "dmd2_schedule": dmd2_schedule,
    "cdm_schedule": cdm_schedule,
    "ema": ema,
    "merge": merge,
    "cdm_times": cdm_times,
    "tbcm_reference": tbcm_reference,
    "tbcm_stratified": tbcm_stratified,
    "meanflow_times": meanflow_times,
    "ect_map": ect_map,
}

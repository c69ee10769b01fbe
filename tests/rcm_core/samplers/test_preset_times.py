"""Presets that claim to sample as their pipeline does have the times that the pipeline sets in its scheduler."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.longcat_image.pipeline_longcat_image import calculate_shift
from torch import Tensor

from rcm_core.diffusion.trigflow import flow_time_from_angle
from rcm_core.samplers.teacher_ode import sample_route

PRESETS = Path(__file__).parents[3] / "conf/teacher"


def sd3(steps: int, shape: list[int]) -> Tensor:
    """stabilityai/stable-diffusion-3-medium-diffusers, and no sigmas of StableDiffusion3Pipeline's own."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas


def sana(steps: int, shape: list[int]) -> Tensor:
    """Efficient-Large-Model/Sana_*_1024px_diffusers."""
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler.set_timesteps(steps)
    return scheduler.sigmas


def longcat(steps: int, shape: list[int]) -> Tensor:
    """meituan-longcat/LongCat-Image: dynamic shifting, and the sigmas of LongCatImagePipeline."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    mu = calculate_shift(shape[2] // 2 * (shape[3] // 2), 256, 4096, 0.5, 1.15)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), mu=mu)
    return scheduler.sigmas


def cosmos(steps: int, shape: list[int]) -> Tensor:
    """nvidia/Cosmos-Predict2-*-Text2Image: Karras' sigmas between those of Cosmos2TextToImagePipeline."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0)
    scheduler.set_timesteps(sigmas=torch.linspace(0, 1, steps).tolist())
    return scheduler.sigmas / (1 + scheduler.sigmas)


def wan(steps: int, shape: list[int]) -> Tensor:
    """Wan-AI/Wan2.1-T2V-*-Diffusers, with the shift that the preset gives a source for."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    scheduler.set_timesteps(steps)
    return scheduler.sigmas


PIPELINES = {"sd3": sd3, "sana": sana, "longcat": longcat, "cosmos": cosmos, "wan": wan}
TEACHERS = {
    path.stem: yaml.safe_load(path.read_text())["teacher"]
    for path in sorted(PRESETS.glob("*.yaml"))
    if "open" in (yaml.safe_load(path.read_text()).get("defaults") or [])
}


def test_every_given_teacher_has_a_pipeline_to_agree_with() -> None:
    assert {teacher["family"] for teacher in TEACHERS.values()} == set(PIPELINES)
    assert len(TEACHERS) >= 8


@pytest.mark.parametrize("name", TEACHERS)
def test_e14_times_are_those_of_the_pipeline(name: str) -> None:
    preset: dict[str, Any] = {"solver": "euler", "grid": "scheduler", "steps": 50} | TEACHERS[name]
    expected = PIPELINES[preset["family"]](preset["steps"], preset["shape"])[:-1]
    options = {key: preset[key] for key in ("steps", "shift", "solver", "grid")}
    route = sample_route(lambda x, t, condition: -x, torch.ones(1, 1, 1, 1, 1), {}, **options)
    found = flow_time_from_angle(route.t).float()
    torch.testing.assert_close(found, expected.float(), atol=2e-5, rtol=0)
    if preset["family"] == "longcat":
        assert math.isclose(float(found[-1]), 0.0606, abs_tol=5e-5)

"""Students of image families give the same samples in diffusers' own pipelines with the few-step scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import PROMPTS, build
from torch import Tensor

from rcm_core.diffusion.trigflow import NOISE_ANGLE
from rcm_core.registry import find
from rcm_core.samplers.few_step import Sampler
from rcm_core.samplers.jobs import Job, Teacher, noise, sample
from rcm_core.samplers.scheduler import FewStepScheduler

TIMES = [[NOISE_ANGLE], [NOISE_ANGLE, 0.8]]
PROMPT = PROMPTS[0]


def sd3(folder: Path, z: Tensor, steps: int) -> Tensor:
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, scheduler=FewStepScheduler("euler", TIMES))
    made: Tensor = drawn(pipeline, z[:, :, 0], steps, height=16, width=12, max_sequence_length=8)
    return made[:, :, None]


def sana(folder: Path, z: Tensor, steps: int) -> Tensor:
    from diffusers import SanaPipeline

    pipeline = SanaPipeline.from_pretrained(folder, scheduler=FewStepScheduler("euler", TIMES))
    rest = {"height": 32, "width": 32, "max_sequence_length": 8, "use_resolution_binning": False}
    return drawn(pipeline, z[:, :, 0], steps, **rest)[:, :, None]


def longcat(folder: Path, z: Tensor, steps: int) -> Tensor:
    from diffusers import AutoencoderKL, LongCatImagePipeline, LongCatImageTransformer2DModel
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    pipeline = LongCatImagePipeline(
        FewStepScheduler("euler", TIMES),
        AutoencoderKL.from_pretrained(folder / "vae"),
        Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        None,
        LongCatImageTransformer2DModel.from_pretrained(folder / "transformer"),
    )
    pipeline.tokenizer_max_length = 8
    family: Any = find("models", "longcat")
    packed = family.pack(z[:, :, 0])
    rest = {"height": 16, "width": 12, "enable_cfg_renorm": False, "enable_prompt_rewrite": False}
    return family.unpack(drawn(pipeline, packed, steps, **rest), 4, 3)[:, :, None]  # type: ignore[no-any-return]


def drawn(pipeline: Any, latents: Tensor, steps: int, **rest: Any) -> Tensor:
    pipeline.set_progress_bar_config(disable=True)
    made: Tensor = pipeline(
        PROMPT, num_inference_steps=steps, guidance_scale=1.0, latents=latents, output_type="latent", **rest
    ).images
    return made


PIPELINES = {"sd3": sd3, "sana": sana, "longcat": longcat}


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("family", PIPELINES)
def test_diffusers_pipeline_draws_what_we_draw(family: str, steps: int, tmp_path: Path) -> None:
    shape = build(family, tmp_path / "pipeline")
    folder = str(tmp_path / "pipeline")
    teacher = Teacher(
        folder, family, shape, guidance=1.0, steps=1, shift=1.0, solver="euler", negative_prompt=""
    )
    sampler = Sampler.of("euler", TIMES)
    ours = sample(Job(teacher, (PROMPT,), (0,), 3, steps, f"{folder}/transformer", sampler))
    with torch.no_grad():
        theirs = PIPELINES[family](tmp_path / "pipeline", noise(3, (0,), 1, shape)[0], steps)
    # the same float32 formulas in another order
    torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)

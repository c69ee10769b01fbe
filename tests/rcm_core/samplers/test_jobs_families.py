"""Samples of every family from tiny networks: shapes, determinism, and a new student equal to its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import BUILDERS, PROMPTS, build

from rcm_core.diffusion.trigflow import NOISE_ANGLE
from rcm_core.samplers.few_step import Sampler
from rcm_core.samplers.jobs import Job, Teacher, sample, sample_pixels, split_jobs

TIMES = Sampler.of("renoise", [[NOISE_ANGLE], [NOISE_ANGLE, 0.8]])


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_a_student_at_its_beginning_samples_what_its_teacher_does(family: str, tmp_path: Path) -> None:
    shape = build(family, tmp_path / "pipeline")
    teacher = Teacher(
        str(tmp_path / "pipeline"),
        family,
        shape,
        guidance=1.0,
        steps=1,
        shift=1.0,
        solver="euler",
        negative_prompt="",
    )
    prompts = tuple(PROMPTS)
    whole = Job(teacher, prompts, (0, 1, 2), 5, 1)
    student = Job(teacher, prompts, (0, 1, 2), 5, 1, str(tmp_path / "pipeline/transformer"), TIMES)
    made, drawn = sample(whole), sample(student)
    assert made.shape == (3, *shape)
    assert made.isfinite().all()
    # one Euler step from noise is the prediction from noise: float32 rounding apart
    torch.testing.assert_close(drawn, made, rtol=0, atol=1e-4)
    two = Job(teacher, prompts, (0, 1, 2), 5, 2, str(tmp_path / "pipeline/transformer"), TIMES)
    pixels = sample_pixels(two)
    assert torch.equal(pixels, sample_pixels(two))
    assert pixels.shape[1] in (1, 2, 3)
    assert not torch.equal(pixels[0], pixels[1])
    parts = torch.cat([sample_pixels(job) for job in split_jobs(two, 2)])
    # another batch size may take another matrix kernel
    torch.testing.assert_close(parts, pixels, rtol=0, atol=1e-3)

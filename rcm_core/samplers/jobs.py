"""Samples of teachers and students for every stage: each is a function of its seed and id, whatever the batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_core.device import refuse_precision, resolve_device
from rcm_core.diffusion.guidance import Guided, calls_per_step
from rcm_core.diffusion.trigflow import NOISE_ANGLE
from rcm_core.errors import InputError
from rcm_core.networks.denoiser import Denoiser, lower
from rcm_core.networks.weights import LORA, Target, is_lora, loading, read_lora
from rcm_core.pipelines.check import check_parts
from rcm_core.pipelines.prompt_cache import encode_cached, texts_of
from rcm_core.pipelines.teacher_folder import pipeline_of
from rcm_core.protocols import Codec, Condition
from rcm_core.registry import find, find_family
from rcm_core.rng import generator
from rcm_core.samplers.few_step import Sampler, sample_student
from rcm_core.samplers.kept import Kept, state_of
from rcm_core.samplers.teacher_ode import Grid, Solver, sample_teacher
from rcm_core.storage.checked_json import read
from rcm_core.storage.files import read_json
from rcm_core.storage.run_folder import RunFolder
from rcm_core.storage.schemas import StudentFacts

NEGATIVE = "negative"
"""Folder of the kept negative prompts: a family may encode them otherwise than prompts."""
KEPT = Kept()
ONE_STEP = Sampler("renoise", ((NOISE_ANGLE,),))


@dataclass(frozen=True)
class Teacher:
    """A resolved teacher: where its pipeline lies and how it is sampled (``runs/teacher/teacher.json``)."""

    folder: str
    family: str
    shape: tuple[int, ...]
    guidance: float
    steps: int
    shift: float
    solver: Solver
    negative_prompt: str
    precision: str = "float32"
    grid: Grid = "scheduler"
    texts: str | None = None
    """Folder in which encoded prompts are kept; None: they are encoded anew, as small encoders do in no time."""

    @classmethod
    def read(cls, workspace: Path, cache: Path | None = None) -> Teacher:
        """From the teacher stage's outputs; ``cache`` is where prompts of a large text encoder are kept."""
        facts = RunFolder.of(workspace).teacher()
        folder = pipeline_of(workspace)
        texts = None if cache is None else texts_of(folder, cache, facts["family"], facts["hash"])
        return cls.of(folder, facts, texts)

    @classmethod
    def of(cls, folder: Path, facts: Mapping[str, Any], texts: str | None = None) -> Teacher:
        """The pipeline in ``folder``, sampled as ``facts`` (those of teacher.json) say."""
        keys = ("family", "guidance", "steps", "shift", "solver", "negative_prompt", "precision")
        grid = facts.get("grid", "scheduler")  # files from before there was the key have the scheduler's
        return cls(
            str(folder), shape=tuple(facts["shape"]), texts=texts, grid=grid, **{k: facts[k] for k in keys}
        )


@dataclass(frozen=True)
class Job:
    """One batch of samples: ``ids[i]`` addresses the noise of ``prompts[i]``."""

    teacher: Teacher
    prompts: tuple[str, ...]
    ids: tuple[int, ...]
    seed: int
    steps: int
    network: str | None = None
    """Folder of a student's transformer; None samples the teacher itself, guided."""
    sampler: Sampler = ONE_STEP
    """The student's; the teacher has its own."""
    device: str = "cpu"
    batch: int | None = None
    """Samples that are made at a time; None: all."""

    @property
    def calls(self) -> int:
        """Network calls for each sample."""
        return self.steps * (calls_per_step(self.teacher.guidance) if self.network is None else 1)


def split_jobs(whole: Job, size: int | None) -> list[Job]:
    """``whole`` in jobs of at most ``size`` samples; None: in one."""
    size = size or len(whole.ids)
    starts = range(0, len(whole.ids), size)
    return [replace(whole, prompts=whole.prompts[i : i + size], ids=whole.ids[i : i + size]) for i in starts]


def network_of(
    folder: str, family: str, transformer: str | None, device: str, precision: str = "float32"
) -> Denoiser:
    """The denoiser of a pipeline folder, with the network of the folder ``transformer`` instead if given.

    If that folder has a LoRA alone, the network is the pipeline's with the LoRA added. It is loaded straight to
    ``device`` in the dtype it computes in. The process keeps it until it needs another: one student and one teacher.
    """
    places = (Path(folder) / "transformer", *(() if transformer is None else (Path(transformer),)))
    key = folder, family, transformer, device, precision, tuple(state_of(place) for place in places)
    load = partial(_load_network, folder, family, transformer, device, precision)
    return KEPT.get("teacher" if transformer is None else "student", key, load)


def _load_network(folder: str, family: str, transformer: str | None, device: str, precision: str) -> Denoiser:
    module = find_family(family)
    where = resolve_device(device)
    refuse_precision(precision, where)
    low = precision == "bfloat16"
    target = Target(where, torch.bfloat16 if low else torch.float32, module.time_embedder if low else None)
    place = Path(folder)
    if transformer is not None and is_lora(Path(transformer)):
        target = replace(target, lora=read_lora(Path(transformer) / LORA))
    elif transformer is not None:
        place = Path(transformer).parent
    with loading(target):
        network = module.load_network(place)
    denoiser = Denoiser(network, module, module.parameterisation(Path(folder)))
    if low:
        lower(denoiser)
    return denoiser.to(where).requires_grad_(False)


def codec_of(folder: str, family: str, device: str = "cpu") -> Codec:
    """The text encoder and VAE of a pipeline folder, on ``device``; what they give is on the CPU. One is kept."""

    def load() -> Codec:
        return find_family(family).load_codec(Path(folder)).to(resolve_device(device))

    return KEPT.get("codec", (folder, family, device, state_of(Path(folder))), load)


def noise(seed: int, ids: tuple[int, ...], draws: int, shape: tuple[int, ...]) -> Tensor:
    """Unit noise [draws, B, *shape]; the first draw of an id is the same for every ``draws``."""
    rows = []
    for identity in ids:
        rng = generator(seed, "noise", identity)
        rows.append(torch.stack([torch.randn(shape, generator=rng) for _ in range(draws)]))
    return torch.stack(rows, dim=1)


def conditions(teacher: Teacher, prompts: tuple[str, ...], device: torch.device) -> Condition:
    """Encoded prompts; every distinct prompt is encoded once."""
    numbers = {prompt: number for number, prompt in enumerate(sorted(set(prompts)))}
    distinct = list(numbers)
    encode = codec_of(teacher.folder, teacher.family, device.type).encode_prompts
    found = (
        encode(distinct) if teacher.texts is None else encode_cached(Path(teacher.texts), distinct, encode)
    )
    rows = torch.tensor([numbers[prompt] for prompt in prompts])
    return {name: value[rows].to(device) for name, value in found.items()}


def negative_condition(teacher: Teacher, device: torch.device) -> Condition:
    """The encoded negative prompt, a batch of 1."""
    texts = [teacher.negative_prompt]
    encode = codec_of(teacher.folder, teacher.family, device.type).encode_text
    if teacher.texts is None:
        found: Condition = encode(texts)
    else:
        found = encode_cached(Path(teacher.texts) / NEGATIVE, texts, encode)
    return {name: value.to(device) for name, value in found.items()}


def load_guided(teacher: Teacher, device: str) -> Guided:
    """The teacher's guided velocity."""
    place = resolve_device(device)
    negative = negative_condition(teacher, place)
    network = network_of(teacher.folder, teacher.family, None, device, teacher.precision)
    return Guided(network, teacher.guidance, negative)


@torch.no_grad()
def sample(job: Job) -> Tensor:
    """Latents [B, C, T, H, W], float32 on the CPU."""
    device = resolve_device(job.device)
    condition = conditions(job.teacher, job.prompts, device)
    draws = 1 if job.network is None else job.sampler.draws(job.steps)
    z = noise(job.seed, job.ids, draws, job.teacher.shape).to(device)
    if job.network is None:
        velocity = load_guided(job.teacher, job.device)
        x0 = sample_teacher(
            velocity, z[0], condition, steps=job.steps, shift=job.teacher.shift, solver=job.teacher.solver,
            grid=job.teacher.grid,
        )  # fmt: skip
    else:
        teacher = job.teacher
        student = network_of(teacher.folder, teacher.family, job.network, job.device, teacher.precision)
        x0 = sample_student(student, z, condition, job.sampler.angles(job.steps), job.sampler.kind)
    return x0.float().cpu()


def read_sampler(facts: Any, where: Path, made_by: str) -> Sampler:
    """The student's sampler that ``facts``, read from ``where``, record; InputError if they hold none."""
    try:
        return Sampler.of(facts["kind"], facts["times"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} has no sampler, which is a kind and lists of times; `dvc repro {made_by}` makes it again"
        ) from error


def decode(job: Job, latents: Tensor) -> Tensor:
    """Pixels in [0, 1], [B, C, T, H, W]."""
    device = resolve_device(job.device)
    return codec_of(job.teacher.folder, job.teacher.family, device.type).decode(latents)


def sample_pixels(job: Job) -> Tensor:
    """Pixels of ``job``'s samples; what executors map over."""
    return decode(job, sample(job))


def sample_pipeline(folder: Path, prompts: list[str], steps: int, seed: int) -> Tensor:
    """Pixels [N, C, T, H, W] in [0, 1] from a published student; sample i has the noise of (seed, i).

    Raises InputError if ``folder`` is not a published student.
    """
    return sample_pixels(pipeline_job(folder, prompts, steps, seed))


def pipeline_job(folder: Path, prompts: list[str], steps: int, seed: int, device: str = "cpu") -> Job:
    """All samples of ``sample_pipeline`` as one job, which may be split."""
    facts: Any = read(folder / "student.json", StudentFacts, "publish")
    teacher = Teacher(
        str(folder), facts["family"], tuple(facts["shape"]), guidance=1.0, steps=steps, shift=1.0, solver="euler",
        negative_prompt="", precision=facts.get("precision", "float32"),
    )  # fmt: skip
    config = folder / "scheduler/scheduler_config.json"
    sampler = read_sampler(read_json(config, "publish"), config, "publish")
    sampler.angles(steps)
    check_parts(find("models", facts["family"]).LAYOUT, folder)
    network, ids = str(folder / "transformer"), tuple(range(len(prompts)))
    return Job(teacher, tuple(prompts), ids, seed, steps, network, sampler, device)

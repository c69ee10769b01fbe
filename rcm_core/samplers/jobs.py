"""Sampling jobs of teachers and students; a sample depends only on its seed and id, not on its batch."""

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
"""Cache folder of negative prompts, separate because a family may encode them in another way."""
KEPT = Kept()
ONE_STEP = Sampler("renoise", ((NOISE_ANGLE,),))


@dataclass(frozen=True)
class Teacher:
    """A resolved teacher: the folder of its pipeline and its sampling settings (``runs/teacher/teacher.json``)."""

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
    """Cache folder of prompt embeddings; None: no cache, for small encoders."""

    @classmethod
    def read(cls, workspace: Path, cache: Path | None = None) -> Teacher:
        """Read the teacher stage's outputs; ``cache`` is the folder for embeddings of a large text encoder."""
        facts = RunFolder.of(workspace).teacher()
        folder = pipeline_of(workspace)
        texts = None if cache is None else texts_of(folder, cache, facts["family"], facts["hash"])
        return cls.of(folder, facts, texts)

    @classmethod
    def of(cls, folder: Path, facts: Mapping[str, Any], texts: str | None = None) -> Teacher:
        """Build the teacher of the pipeline in ``folder`` with the sampling settings ``facts`` of teacher.json."""
        keys = ("family", "guidance", "steps", "shift", "solver", "negative_prompt", "precision")
        grid = facts.get("grid", "scheduler")  # older files lack the key
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
    """Sampler of the student; a teacher does not use it."""
    device: str = "cpu"
    batch: int | None = None
    """Batch size of sampling; None: all samples at once."""

    @property
    def calls(self) -> int:
        """Number of network calls per sample."""
        return self.steps * (calls_per_step(self.teacher.guidance) if self.network is None else 1)


def split_jobs(whole: Job, size: int | None) -> list[Job]:
    """Split ``whole`` into jobs of at most ``size`` samples; None: one job."""
    size = size or len(whole.ids)
    starts = range(0, len(whole.ids), size)
    return [replace(whole, prompts=whole.prompts[i : i + size], ids=whole.ids[i : i + size]) for i in starts]


def network_of(
    folder: str, family: str, transformer: str | None, device: str, precision: str = "float32"
) -> Denoiser:
    """Load the denoiser of a pipeline folder, with the network of the folder ``transformer`` if that is not None.

    If ``transformer`` has only a LoRA, the network is the pipeline's with the LoRA added. It is loaded directly to
    ``device`` in its compute dtype. The process caches one student and one teacher.
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
    """Load the text encoder and VAE of a pipeline folder onto ``device``; their outputs are on the CPU.

    The process caches one codec.
    """

    def load() -> Codec:
        return find_family(family).load_codec(Path(folder)).to(resolve_device(device))

    return KEPT.get("codec", (folder, family, device, state_of(Path(folder))), load)


def noise(seed: int, ids: tuple[int, ...], draws: int, shape: tuple[int, ...]) -> Tensor:
    """Return unit noise [draws, B, *shape]; the first draw of an id is the same for every ``draws``."""
    rows = []
    for identity in ids:
        rng = generator(seed, "noise", identity)
        rows.append(torch.stack([torch.randn(shape, generator=rng) for _ in range(draws)]))
    return torch.stack(rows, dim=1)


def conditions(teacher: Teacher, prompts: tuple[str, ...], device: torch.device) -> Condition:
    """Encode prompts; every distinct prompt is encoded once."""
    numbers = {prompt: number for number, prompt in enumerate(sorted(set(prompts)))}
    distinct = list(numbers)
    encode = codec_of(teacher.folder, teacher.family, device.type).encode_prompts
    encoded = (
        encode(distinct) if teacher.texts is None else encode_cached(Path(teacher.texts), distinct, encode)
    )
    rows = torch.tensor([numbers[prompt] for prompt in prompts])
    return {name: value[rows].to(device) for name, value in encoded.items()}


def negative_condition(teacher: Teacher, device: torch.device) -> Condition:
    """Encode the negative prompt, a batch of 1."""
    texts = [teacher.negative_prompt]
    encode = codec_of(teacher.folder, teacher.family, device.type).encode_text
    if teacher.texts is None:
        encoded: Condition = encode(texts)
    else:
        encoded = encode_cached(Path(teacher.texts) / NEGATIVE, texts, encode)
    return {name: value.to(device) for name, value in encoded.items()}


def load_guided(teacher: Teacher, device: str) -> Guided:
    """Load the teacher's guided velocity."""
    place = resolve_device(device)
    negative = negative_condition(teacher, place)
    network = network_of(teacher.folder, teacher.family, None, device, teacher.precision)
    return Guided(network, teacher.guidance, negative)


@torch.no_grad()
def sample(job: Job) -> Tensor:
    """Sample latents [B, C, T, H, W], float32 on the CPU."""
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
    """Return the student's sampler in ``facts``, which were read from ``where``; InputError if they have none."""
    try:
        return Sampler.of(facts["kind"], facts["times"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{where} has no sampler, that is a kind and lists of times; `dvc repro {made_by}` makes it again"
        ) from error


def decode(job: Job, latents: Tensor) -> Tensor:
    """Decode latents to pixels in [0, 1], [B, C, T, H, W]."""
    device = resolve_device(job.device)
    return codec_of(job.teacher.folder, job.teacher.family, device.type).decode(latents)


def sample_pixels(job: Job) -> Tensor:
    """Return the pixels of a job's samples; executors map this function."""
    return decode(job, sample(job))


def sample_pipeline(folder: Path, prompts: list[str], steps: int, seed: int) -> Tensor:
    """Sample pixels [N, C, T, H, W] in [0, 1] from a published student; sample i has the noise of (seed, i).

    InputError if ``folder`` is not a published student.
    """
    return sample_pixels(pipeline_job(folder, prompts, steps, seed))


def pipeline_job(folder: Path, prompts: list[str], steps: int, seed: int, device: str = "cpu") -> Job:
    """Return all samples of ``sample_pipeline`` as one job, which may be split."""
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

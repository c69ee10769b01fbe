"""Typed, frozen parameters: a class for each section of params.yaml; the method's own keys are its ``Config``'s."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from rcm_core.config.base import Section
from rcm_core.config.mini_teacher import Gate, MiniTraining
from rcm_core.config.roles import LearningRates, Limits, Updates
from rcm_core.config.types import (
    Count,
    Decay,
    Endpoint,
    Factor,
    Lengths,
    Name,
    Positive,
    Resamples,
    Seed,
    Share,
    Steps,
    Threads,
)


class TeacherSection(Section):
    """``teacher:`` which diffusion model is distilled, and how it is sampled."""

    source: str
    """``mini`` (trained here), a folder, or ``s3://bucket/prefix``; diffusers layout."""
    hash: str | None
    """Content hash (teacher.json has it) that ``source`` must have; null accepts what lies there at the time."""
    endpoint: Endpoint | None
    """S3 endpoint for ``source`` (None: the provider's own)."""
    variant: Annotated[str, Field(pattern=r"^\w[\w-]*$")] | None = None
    """Which weights of ``source``, as in diffusers: ``fp16`` for model.fp16.safetensors; None: plain names."""
    family: str
    data: str
    """Benchmark (``rcm_core/benchmarks/<name>.py``): real images, splits, judge."""
    shape: tuple[Count, Count, Count, Count]
    """Latent channels, frames, height, width."""
    guidance: Annotated[float, Field(ge=1)]
    steps: Count
    shift: Positive
    solver: Literal["euler", "unipc", "dpmsolver++"]
    grid: Literal["scheduler", "linear", "karras"] = "scheduler"
    """Times of Euler's steps (E14)."""
    precision: Literal["float32", "bfloat16"]
    """Of the networks wherever they are sampled; what embeds the time stays float32."""
    negative_prompt: str
    licence: str
    mini: MiniTraining | None
    gate: Gate | None
    seed: Seed
    device: Literal["auto", "cpu", "cuda"]


class PromptsSection(Section):
    """``prompts:`` one file per split: text with a prompt per line, or a table (docs/data.md)."""

    train: str
    validation: str
    test: str


class SourceSection(Section):
    """``trajectories.source:`` samples that are there already (docs/data.md)."""

    folder: str
    """Of images or videos with captions, or of tars with latents; or ``s3://bucket/prefix`` at ``endpoint``."""
    endpoint: Endpoint | None = None
    fps: Positive | None = None
    """Frames per second that are taken of videos; None: all, at each file's own rate."""


class TrajectoriesSection(Section):
    """``trajectories:`` what the teacher generates for training; with a ``source``, all of its samples instead."""

    source: SourceSection | None
    samples: Count
    shard_size: Count
    keep_trajectories: bool
    """Also keep every state, angle and velocity of the route."""
    real: bool
    """Also keep a real image for every sample, with a prompt of its own; those of a source are their own."""
    batch: Count | None
    """Samples that are made at a time; null: a shard."""
    target: str | None
    """None: in the stage's folder; else a folder or ``s3://bucket/prefix`` that holds the shards."""
    endpoint: Endpoint | None
    """S3 endpoint for ``target`` (None: the provider's own)."""
    seed: Seed
    device: Literal["auto", "cpu", "cuda"]


class JudgeSection(Section):
    """``judge:`` what judges samples of ``teacher.data: open``; null for benchmarks with a judge of their own."""

    network: str
    """A CLIP or SigLIP in transformers layout: a folder, or ``s3://bucket/prefix``."""
    endpoint: Endpoint | None = None
    """S3 endpoint for ``network`` (None: the provider's own)."""


class WarmStart(Section):
    """An earlier student and the teacher that it was distilled from: folders, or ``s3://bucket/prefix``."""

    student: str
    """As published."""
    teacher: str
    endpoint: Endpoint | None = None
    """S3 endpoint of both (None: the provider's own)."""


class HealthSection(Section):
    """``train.health:`` what is watched in training and when it stops early; null switches a rule off."""

    probe_every: Count | None
    """Iterations between probes of the student; null: none, and nothing is held back from training."""
    probe_samples: Annotated[int, Field(ge=2)]
    """Trajectories that are held back for them."""
    drift: Positive | None
    """Largest change of brightness or contrast relative to the teacher, in units of its contrast."""
    collapse: Factor | None
    """A validation score worse than this times the best is a collapse."""
    patience: Count | None
    """Probes without improvement that end the training."""
    spike: Factor | None
    """A tangent or gradient norm of more than this times its running median is a spike."""


class ParallelSection(Section):
    """``train.parallel:`` how the workers share networks, states and memory."""

    replicas: Count
    """Groups of workers that hold whole copies of the networks (HSDP); within a group they are sharded."""
    context: Count
    """Workers that share the tokens of one state (Ulysses); divides the attention's heads."""
    precision: Literal["float32", "bfloat16"]
    """Of the networks' computations; weights, optimisers, averages and the sums over workers stay float32."""
    checkpointing: Literal["none", "blocks", "matmuls"]
    """What backward recomputes: nothing; the blocks; the blocks except the outputs of matrix products and attention."""
    offload: tuple[Literal["teacher", "fake"], ...]
    """Networks that lie in the machine's memory, moments too, and on the GPU a block at a time."""


class LoraSection(Section):
    """``train.lora:`` low-rank matrices beside the teacher's frozen weights instead of whole networks."""

    rank: Count
    alpha: Count
    """The product of the matrices counts alpha / rank."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None
    """Endings of the names of the blocks' linear layers that get them; null: all."""


class TrainSection(Section):
    """``train:`` everything about training that is not the method."""

    iterations: Count
    batch: Count
    """Samples per iteration over all ranks and accumulation steps."""
    accumulate: Count
    lr: LearningRates
    clip: Limits
    """Largest gradient norm of each role's network, one for all or one for each; null: no clipping."""
    lr_warmup: Updates
    """Updates of each role's optimiser over which its learning rate rises, one number for all or one for each.

    A training with fewer updates ends on the way up.
    """
    lr_decay: bool
    """Cosine to zero over the run."""
    lr_decay_from: Count | None
    """Iteration from which on rates fall with its inverse square root; null: they do not."""
    optimiser: Literal["adamw", "adamw8bit"]
    """Moments in float32, or in eight bits (torchao; extra ``eightbit``)."""
    betas: tuple[Decay, Decay]
    eps: Positive
    """Added to the root of Adam's second moment."""
    weight_decay: Annotated[float, Field(ge=0)]
    ema_lengths: Lengths
    """Relative lengths of the power-function EMA profiles."""
    candidate_every: Count
    """Iterations between candidate checkpoints (every EMA length is one candidate); at most ``iterations``."""
    candidate_precision: Literal["float32", "bfloat16"] | None
    """Dtype of candidates on disk; null: teacher.precision. The time embedding is always float32."""
    keep_candidates: Count | None
    """Newest steps whose candidates stay, each with all EMA lengths; null: all steps."""
    checkpoint_every: Count
    """Iterations between checkpoints; the last iteration always has one."""
    log_every: Count
    """Iterations between log lines; the last iteration always has one."""
    tangent: Literal["exact", "semi", "discrete"]
    tangent_fallback: bool
    """Step down exact -> semi -> discrete when too many samples are not finite, or the tangent norm keeps spiking."""
    max_nonfinite: Share
    """Largest share of samples that may be left out over the last 100 iterations."""
    health: HealthSection
    workers: Count
    min_workers: Count | None
    """Smallest number of workers with which Ray continues when some are lost; null: all are required."""
    parallel: ParallelSection
    threads: Threads
    max_failures: Annotated[int, Field(ge=0)]
    lora: LoraSection | None
    """null: whole networks are trained."""
    warm_start: WarmStart | None
    """null: the student begins as its teacher."""
    seed: Seed
    device: Literal["auto", "cpu", "cuda"]


class SamplerSection(Section):
    """``sampler:`` how the student is sampled; comes with the method, is published with the student."""

    kind: Literal["renoise", "euler"]
    """After each step: new noise, or on along the line that is left (deterministic, DDIM)."""
    times: tuple[tuple[float, ...], ...]
    """A list of descending TrigFlow angles for each number of steps; 1.5708 means pi/2, pure noise."""


class SelectSection(Section):
    """``select:`` how a candidate is chosen, on the validation split alone."""

    samples: Count
    batch: Count | None
    """Samples that are made at a time; null: all."""
    steps: Steps
    metric: str
    """A metric of ``rcm_core/evaluation/metrics`` that may select."""
    bootstrap: Resamples
    seed: Seed
    device: Literal["auto", "cpu", "cuda"]


class EvaluateSection(Section):
    """``evaluate:`` the protocol of the reported numbers, on the test split alone."""

    samples: Count
    batch: Count
    """Samples that are made at a time."""
    keep_pixels: Count | None
    """Samples of every sampler whose pixels are kept for the report; null: all."""
    steps: Steps
    diversity_prompts: Count
    diversity_samples: Annotated[int, Field(ge=2, lt=2**31)]
    timing_samples: Count
    bootstrap: Resamples
    seed: Seed
    device: Literal["auto", "cpu", "cuda"]


class ReportSection(Section):
    title: str
    prompts: Count
    """Rows of the side-by-side grid."""


class PublishSection(Section):
    name: Name
    target: str | None
    """Also copied to ``<target>/<name>/<version>``: a folder or ``s3://bucket/prefix``."""
    endpoint: Endpoint | None


class Params(Section):
    """The whole of params.yaml."""

    teacher: TeacherSection
    prompts: PromptsSection
    trajectories: TrajectoriesSection
    method: dict[str, Any]
    sampler: SamplerSection
    train: TrainSection
    judge: JudgeSection | None
    select: SelectSection
    evaluate: EvaluateSection
    report: ReportSection
    publish: PublishSection

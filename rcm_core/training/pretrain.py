"""Train the built-in teacher's network by flow matching; a loop for ``Executor.train``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rcm_core.config.sections import TeacherSection
from rcm_core.data.loaders import DrawnSource, ImageSource
from rcm_core.data.prompts import by_label
from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.execution import TrainContext
from rcm_core.networks.denoiser import load_denoiser
from rcm_core.protocols import Condition, Networks
from rcm_core.registry import find_benchmark, find_family
from rcm_core.training.flow_matching import FlowMatching
from rcm_core.training.loop_settings import LoopSettings
from rcm_core.training.memory_usage import write_usage
from rcm_core.training.parallel.sharding import shard
from rcm_core.training.train_step import Source
from rcm_core.training.trainer import Trainer


def settings_of(section: TeacherSection) -> LoopSettings:
    """Return the loop's settings; the last EMA is the only candidate."""
    mini = section.mini
    if mini is None:
        raise ValueError("teacher.mini is null, but only the built-in teacher is trained; set teacher.mini")
    return LoopSettings(
        iterations=mini.steps,
        batch=mini.batch,
        accumulate=1,
        lr={"student": mini.lr},
        clip={},
        lr_warmup={"student": 20},
        lr_decay=True,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        ema_lengths=(mini.ema_length,),
        candidate_every=mini.steps,
        checkpoint_every=mini.checkpoint_every,
        log_every=100,
        max_nonfinite=0.0,
        seed=section.seed,
        muon=mini.optimiser == "muon",
    )


def image_source(section: TeacherSection, prompts: list[str], folder: Path, device: torch.device) -> Source:
    """Return training images of ``section.data`` with their prompts, rendered on the fly if the benchmark can."""
    data = find_benchmark(section.data)
    images, labels = data.images("train")
    if images.shape[1:] != section.shape:
        raise InputError(
            f"teacher.shape is {list(section.shape)}, but images of {section.data} have {list(images.shape[1:])}"
            " (channels, frames, height, width); make them equal"
        )
    codec = find_family(section.family).load_codec(folder)
    encoded: Condition = codec.encode_text([*prompts, section.negative_prompt])
    table = {k: v[:-1].to(device) for k, v in encoded.items()}
    negative = {k: v[-1:].to(device) for k, v in encoded.items()}
    batch = settings_of(section).batch
    draw_image = data.draw
    if draw_image is not None:
        named = sorted(by_label(prompts, data.label, ()).items())
        groups = [rows for label, rows in named for _ in range(data.emphasis[label])]

        def draw(row: int, rng: torch.Generator) -> torch.Tensor:
            return draw_image(prompts[row], "train", rng).to(device)

        return DrawnSource(draw, groups, table, negative, batch, section.seed)
    rows = by_label(prompts, data.label, labels.tolist())
    choices = [torch.tensor(rows[label]) for label in labels.tolist()]
    return ImageSource(images.to(device), choices, table, negative, batch, section.seed)


def loop(context: TrainContext, spec: dict[str, Any]) -> None:
    """Train the network that ``spec`` describes: teacher (section), prompts, pipeline, candidates, state, threads."""
    torch.set_num_threads(spec["threads"])
    section = TeacherSection.model_validate(spec["teacher"], strict=False)
    device = resolve_device(section.device)
    folder = Path(spec["pipeline"])
    student = load_denoiser(folder, find_family(section.family)).to(device).train()
    shard(student, context.world, device)
    mini = section.mini
    assert mini is not None  # settings_of raises first
    trainer = Trainer(
        modules={"student": student},
        networks=Networks(student),
        build_method=lambda _: FlowMatching(mini.condition_dropout, mini.time_mean),
        source=image_source(section, spec["prompts"], folder, device),
        settings=settings_of(section),
        context=context,
        device=device,
        candidates=Path(spec["candidates"]),
    )
    trainer.run()
    write_usage(Path(spec["state"]), context.rank, device)

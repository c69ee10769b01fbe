"""Training on one or several ranks without a cluster, as functions that a process pool can import."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from loops import SETTINGS, probe

from rcm_core.config.load import load_params
from rcm_core.networks.denoiser import load_denoiser
from rcm_core.protocols import Batch, MethodRequirements, Networks, TargetUpdate
from rcm_core.registry import find_family
from rcm_core.rng import generator
from rcm_core.training import distill
from rcm_core.training.checkpointing.checkpoint import full_tensors
from rcm_core.training.flow_matching import FlowMatching
from rcm_core.training.loop_settings import LoopSettings
from rcm_core.training.parallel.sharding import shard
from rcm_core.training.parameter_updates import ParameterUpdater
from rcm_core.training.trainer import Trainer

CPU = torch.device("cpu")
BATCH = 8
PARTS = 4


class Context:
    """A TrainContext whose checkpoints are folders below ``state`` that all ranks write into."""

    def __init__(self, rank: int, world: int, state: Path, resumed: Path | None) -> None:
        self.rank, self.world, self.state, self.resumed = rank, world, state, resumed
        self.group = dist.new_group(backend="gloo")  # the training continues in the other

    def resume(self) -> Path | None:
        return self.resumed

    def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
        if checkpoint is not None:
            shutil.copytree(checkpoint, self.state / f"step_{step}", dirs_exist_ok=True)
        dist.barrier(self.group)

    def leaving(self) -> bool:
        return False

    def leave(self) -> NoReturn:
        raise AssertionError


class Noise:
    """A source of random states, a function of the step."""

    def batch(self, step: int, part: int, size: int) -> Batch:
        rng = generator("data", step, part)
        text = {"text": torch.randn(size, 4, 32, generator=rng)}
        return Batch(text, {"text": torch.zeros(1, 4, 32)}, torch.randn(size, 1, 1, 8, 8, generator=rng))


def trainer(pipeline: Path, context: Context, until: int, accumulate: int = 1) -> Trainer:
    """Return a new trainer, or one resumed from ``context``."""
    student = load_denoiser(pipeline, find_family("wan")).train()
    shard(student, context.world, CPU)
    settings = LoopSettings(
        iterations=until,
        batch=BATCH,
        accumulate=accumulate,
        lr={"student": 1e-3},
        clip={},
        lr_warmup={},
        lr_decay=False,
        betas=(0.9, 0.99),
        weight_decay=0.01,
        ema_lengths=(0.05, 0.1),
        candidate_every=until,
        checkpoint_every=until,
        log_every=until,
        max_nonfinite=0.0,
        seed=0,
    )
    return Trainer(
        modules={"student": student},
        networks=Networks(student),
        build_method=lambda _: FlowMatching(0.1),
        source=Noise(),
        settings=settings,
        context=context,
        device=CPU,
        candidates=context.state / "candidates",
    )


def distil_on(rank: int, world: int, workspace: Path, state: Path) -> None:
    """Distil as the train stage does, as one of ``world`` processes without a cluster."""
    params = load_params(workspace / "params.yaml")
    params = params.model_copy(update={"train": params.train.model_copy(update={"workers": world})})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{state / 'meeting'}", rank=rank, world_size=world)
    places = {"workspace": str(workspace), "state": str(state), "cache": str(state / "cache")}
    distill.loop(Context(rank, world, state, None), {"params": params.model_dump(mode="json"), **places})
    dist.destroy_process_group()


def distil_each_on(rank: int, world: int, runs: list[tuple[Path, Path]]) -> None:
    """Call ``distil_on`` for one (workspace, state) after another, in the same processes."""
    for workspace, state in runs:
        distil_on(rank, world, workspace, state)


def probe_on(rank: int, world: int, pipeline: Path, state: Path) -> None:
    """Probe, update the EMAs and a target network, and probe again, as one of ``world`` processes.

    Rank 0 saves the readings, whether probing preserved the weights, and the target's outputs before and after.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{state / 'meeting'}", rank=rank, world_size=world)
    nets = {role: load_denoiser(pipeline, find_family("wan")) for role in ("student", "target")}
    for net in nets.values():
        shard(net, world, CPU)
    requirements = MethodRequirements(
        frozenset({"student"}), frozenset(), follows=(TargetUpdate("target", "student", 0.5, "student"),)
    )
    updater = ParameterUpdater(nets, requirements, replace(SETTINGS, ema_lengths=(0.05,)), world)
    looking = replace(probe(), world=world)
    before = full_tensors(nets["student"].state_dict())
    readings = [looking.read(0, nets["student"], updater.ema)]
    after = full_tensors(nets["student"].state_dict())
    followed = [looking.samples(nets["target"])]
    grow(nets["student"])
    updater.move(0, ["student"], student_update=True)
    followed.append(looking.samples(nets["target"]))
    grow(nets["student"])  # move the weights away from their EMA
    readings.append(looking.read(1, nets["student"], updater.ema))
    own = looking.samples(nets["student"])
    if rank == 0:
        kept = all(torch.equal(before[name], after[name]) for name in before)
        found = {
            "readings": [tuple(r) for r in readings],
            "kept": kept,
            "followed": torch.stack(followed),
            "own": own,
        }
        torch.save(found, state / "readings.pt")
    dist.destroy_process_group()


@torch.no_grad()
def grow(module: torch.nn.Module) -> None:
    """Increase all weights by one per cent."""
    for p in module.parameters():
        p.mul_(1.01)


def continue_on(rank: int, world: int, pipeline: Path, state: Path, resumed: Path, until: int) -> None:
    """Continue from ``resumed`` as one of ``world`` processes, with the same ``PARTS`` of every batch."""
    torch.set_num_threads(1)
    meeting = f"file://{state / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    trainer(pipeline, Context(rank, world, state, resumed), until, PARTS // world).run()
    dist.destroy_process_group()

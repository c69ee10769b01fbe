"""A distillation step by step, in one process or in several that continue from each other's checkpoints."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from infra.executors.local import LocalContext, _process_group
from rcm_core.config.load import load_params
from rcm_core.training import distill
from rcm_core.training.checkpointing.async_writer import Writer
from rcm_core.training.checkpointing.checkpoint import full_tensors


def trained(workspace: Path, state: Path, *ends: int) -> dict[str, Tensor]:
    """Return all networks' weights after the last of ``ends``; after each of them a new trainer resumes."""
    values = load_params(workspace / "params.yaml").model_dump(mode="json")
    spec = {"params": values, "workspace": str(workspace), "state": str(state), "cache": str(state)}
    state.mkdir()
    with _process_group():
        for end in ends:
            trainer = distill.assemble(LocalContext(state), spec)
            while trainer.step < end:
                trainer.curves.add(trainer.train_step(trainer.step))
                trainer.step += 1
            with Writer(LocalContext(state), state) as writer:
                trainer.save(writer)
        every = {
            f"{role} {name}": w
            for role, net in trainer.modules.items()
            for name, w in net.state_dict().items()
        }
        return full_tensors(every)

"""Sharded networks are read by the first rank and sent: every rank has its part of the weights, and the buffers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from families import BUILDERS, build
from processes import on_ranks
from torch.distributed.fsdp import FSDPModule

from rcm_core.networks.denoiser import load_denoiser
from rcm_core.registry import find
from rcm_core.training.checkpointing.checkpoint import full_tensors
from rcm_core.training.parallel.sharding import PLAIN, Spread

CPU = torch.device("cpu")


def on_a_rank(rank: int, world: int, place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'meeting'}", rank=rank, world_size=world)
    for name in BUILDERS:
        folder, family = place / name, find("models", name)
        read = family.load_network
        if rank != 0:
            family.load_network = lambda _: pytest.fail("read by another rank than the first")
        spread = Spread.of(PLAIN.model_copy(update={"offload": ("teacher",)}), world, CPU)
        found = {}
        for frozen in (False, True):
            denoiser = spread.load("teacher" if frozen else "student", folder, family, CPU)  # type: ignore[arg-type]
            assert {p.requires_grad for p in denoiser.parameters()} == {not frozen}
            units = [m for m in denoiser.modules() if isinstance(m, FSDPModule)]
            groups = [unit._get_fsdp_state()._fsdp_param_group for unit in units]
            # where weights lie cannot be seen on a CPU, but what FSDP was asked for can
            assert {p.offload_to_cpu for group in groups for p in group.fsdp_params} == {frozen}
            weights = full_tensors(denoiser.network.state_dict())
            config: dict[str, Any] = json.loads((folder / "transformer/config.json").read_text())
            x, condition = family.example(config, 2, torch.Generator().manual_seed(0))
            with torch.no_grad():
                found[frozen] = weights | {"velocity": denoiser(x, torch.tensor([1.2, 0.4]), condition)}
        other = full_tensors(
            spread.load(
                "student",
                folder,
                family,
                CPU,
                weights={k: v + 1 for k, v in read(folder).state_dict().items()},
            ).network.state_dict()  # type: ignore[arg-type]
        )
        family.load_network = read
        if rank == world - 1:
            torch.save({**found, "other": other}, place / f"{name}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    for name in BUILDERS:
        build(name, folder / name)
    on_ranks(on_a_rank, (2, folder), 2)
    return folder


@pytest.mark.parametrize("name", BUILDERS)
def test_what_was_sent_is_what_was_read(name: str, place: Path) -> None:
    family: Any = find("models", name)
    plain = load_denoiser(place / name, family)
    config = json.loads((place / name / "transformer/config.json").read_text())
    x, condition = family.example(config, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        velocity = plain(x, torch.tensor([1.2, 0.4]), condition)
    found: dict[Any, dict[str, torch.Tensor]] = torch.load(place / f"{name}.pt")
    for frozen in (False, True):
        for key, value in plain.network.state_dict().items():
            assert torch.equal(found[frozen][key], value), key
        # float32: processes may sum in another order
        torch.testing.assert_close(found[frozen]["velocity"], velocity, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(found["other"][k], v + 1) for k, v in plain.network.state_dict().items())

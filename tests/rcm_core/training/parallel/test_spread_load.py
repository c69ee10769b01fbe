"""The first rank reads a sharded network and sends it: every rank has its part of the weights, and the buffers."""

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

from experiments.engine.rank_memory import load_measured, write_teacher
from rcm_core.networks.denoiser import load_denoiser
from rcm_core.registry import find
from rcm_core.training.checkpointing.checkpoint import full_tensors
from rcm_core.training.parallel.sharding import PLAIN, ShardingPlan

CPU = torch.device("cpu")
SLACK = 24 * 2**20
"""Additional bytes for the allocator and gloo."""


def on_a_rank(rank: int, world: int, place: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'meeting'}", rank=rank, world_size=world)
    for name in BUILDERS:
        folder, family = place / name, find("models", name)
        read = family.load_network
        if rank != 0:
            family.load_network = lambda _: pytest.fail("read by another rank than the first")
        spread = ShardingPlan.of(PLAIN.model_copy(update={"offload": ("teacher",)}), world, CPU)
        found = {}
        for frozen in (False, True):
            denoiser = spread.load("teacher" if frozen else "student", folder, family, CPU)
            assert {p.requires_grad for p in denoiser.parameters()} == {not frozen}
            units = [m for m in denoiser.modules() if isinstance(m, FSDPModule)]
            groups = [unit._get_fsdp_state()._fsdp_param_group for unit in units]
            # on a CPU the location of weights is not visible, but the arguments of FSDP are
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
            ).network.state_dict()
        )
        family.load_network = read
        if rank == world - 1:
            torch.save({**found, "other": other}, place / f"{name}.pt")
    taken = load_measured(ShardingPlan.of(PLAIN, world, CPU), place / "large")
    (place / f"memory-{rank}.json").write_text(json.dumps(taken))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    for name in BUILDERS:
        build(name, folder / name)
    write_teacher(folder / "large", layers=8, width=512, shard="20MB")
    on_ranks(on_a_rank, (2, folder), 2)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_holds_its_part_and_no_more_than_one_file(rank: int, place: Path) -> None:
    files = [path.stat().st_size for path in (place / "large/transformer").glob("*.safetensors")]
    taken = json.loads((place / f"memory-{rank}.json").read_text())
    assert len(files) >= 6
    assert sum(files) > max(files) + 2 * SLACK  # detects a rank that maps the whole network
    assert taken["part"] < taken["peak"] < taken["part"] + max(files) + SLACK


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

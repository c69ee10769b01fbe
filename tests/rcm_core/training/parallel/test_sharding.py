"""A training on several ranks equals that on one rank, for every layout: loss, tangent and weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from families import build
from processes import on_ranks
from torch import Tensor

from infra.commands.families import family_of
from rcm_core.config.sections import ParallelSection
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.protocols import Batch, Networks
from rcm_core.rng import generator
from rcm_core.training.checkpointing.checkpoint import full_tensors
from rcm_core.training.parallel.activation_checkpointing import checkpoint_blocks
from rcm_core.training.parallel.sharding import PLAIN, ShardingPlan
from rcm_core.training.train_step import Stepper

CPU = torch.device("cpu")
BATCH, UPDATES = 4, 3
SHAPES = {"wan": (2, 3, 4, 8), "sd3": (4, 1, 8, 8)}


def section(**changes: Any) -> ParallelSection:
    return PLAIN.model_copy(update=changes)


class Rank:
    """The part of protocols.TrainContext that steps need."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def resume(self) -> None:
        return None

    def report(self, *given: Any) -> None: ...

    def leaving(self) -> bool:
        return False


class Made:
    """Source of latents and conditions that fit a network, a function of the step."""

    def __init__(self, denoiser: Denoiser, shape: tuple[int, ...]) -> None:
        self.denoiser, self.shape = denoiser, shape

    def batch(self, step: int, part: int, size: int) -> Batch:
        rng = generator("data", step, part)
        example = self.denoiser.family.example
        config: Any = self.denoiser.network.config
        condition = example(config, size, rng)[1]
        negative = example(config, 1, generator("negative"))[1]
        return Batch(condition, negative, torch.randn(size, *self.shape, generator=rng))


def loaded(folder: Path, seed: int = 3) -> Denoiser:
    denoiser = load_denoiser(folder, family_of(folder))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():  # as initialised many modules hide what they are given
            parameter.normal_(0, 0.1, generator=rng)
    return denoiser


def trained(folder: Path, how: ParallelSection, rank: int, world: int, accumulate: int) -> dict[str, Tensor]:
    """Return the scalars of every step of rCM and the final weights."""
    from loops import SETTINGS
    from spies import preset

    spread = ShardingPlan.of(how, world, CPU)
    nets = {"student": loaded(folder), "fake": loaded(folder)}
    frozen = loaded(folder).requires_grad_(False)
    for role, net in {**nets, "teacher": frozen}.items():
        spread.apply(net, role in how.offload)

    @torch.no_grad()
    def teacher(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return frozen(x, t, condition)  # type: ignore[no-any-return]

    settings = replace(
        SETTINGS, iterations=10, batch=BATCH, accumulate=accumulate, context=how.context, max_nonfinite=0.0
    )
    method = preset("rcm", warmup=0, student_every=2, simulation_steps=2)
    stepper = Stepper(
        modules=nets,
        networks=Networks.by_role(nets, guided_teacher=teacher),
        build_method=lambda _: method,
        source=Made(nets["student"], SHAPES[folder.name]),
        settings=settings,
        context=Rank(rank, world),  # type: ignore[arg-type]
        device=CPU,
    )
    found: dict[str, Tensor] = {}
    for step in range(2 * UPDATES):
        scalars = stepper.train_step(step)
        found |= {f"{step} {name}": torch.tensor(value) for name, value in scalars.items()}
    for role, net in nets.items():
        found |= {f"weights {role} {n}": w for n, w in full_tensors(net.state_dict()).items()}
    return found


@cache
def alone(folder: Path, parts: int) -> dict[str, Tensor]:
    """Run ``trained`` on one rank, with a batch in ``parts``."""
    return trained(folder, section(), 0, 1, parts)


# name -> (ranks, accumulation steps, how); the parts of a batch are as many as ranks x accumulation / context
SPREADS = {
    "sharded": (2, 1, section()),
    "split": (2, 2, section(context=2)),
    "replicated": (4, 1, section(replicas=2)),
    "split and sharded": (4, 2, section(context=2)),
    "teacher and fake score elsewhere": (2, 1, section(offload=("teacher", "fake"))),
    "replicated, split, checkpointed": (4, 2, section(replicas=2, context=2, checkpointing="blocks")),
}
LOW = (2, 1, section(precision="bfloat16"))


def on_a_rank(rank: int, world: int, place: Path) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{place / f'meeting-{world}'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
    for name, (ranks, accumulate, how) in {**SPREADS, "low": LOW}.items():
        for family in SHAPES if ranks == world else ():
            found = trained(place / family, how, rank, world, accumulate)
            if rank == 0:
                torch.save(found, place / f"{family} {name}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    for name in SHAPES:
        build(name, folder / name)
    for world in (2, 4):
        on_ranks(on_a_rank, (world, folder), world)
    return folder


@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("name", SPREADS)
def test_loss_tangent_and_weights_are_those_of_one_rank(name: str, family: str, place: Path) -> None:
    ranks, accumulate, how = SPREADS[name]
    parts = ranks * accumulate // how.context
    expected = alone(place / family, parts)
    found: dict[str, Tensor] = torch.load(place / f"{family} {name}.pt")
    assert found.keys() == expected.keys()
    moved = loaded(place / family).state_dict()
    for what, value in expected.items():
        if what.startswith("weights"):
            # three updates of 1e-3 each; where a gradient is all but zero AdamW makes a whole step of its rounding
            torch.testing.assert_close(found[what], value, rtol=0, atol=1e-4, msg=f"{what} of {name}")
        else:
            # float32 sums in another order; and what five updates make of that
            tolerance = 1e-5 if what.startswith("0 ") else 1e-4
            torch.testing.assert_close(found[what], value, rtol=tolerance, atol=1e-5, msg=f"{what} of {name}")
    change = max(float((expected[f"weights student {n}"] - w).abs().max()) for n, w in moved.items())
    assert change > 1e-3  # the comparison is not trivial


@pytest.mark.parametrize("family", SHAPES)
def test_in_bfloat16_the_weights_stay_float32_and_the_loss_is_near(family: str, place: Path) -> None:
    expected = alone(place / family, 2)
    found: dict[str, Tensor] = torch.load(place / f"{family} low.pt")
    assert found.keys() == expected.keys()
    weights = {what: value for what, value in found.items() if what.startswith("weights")}
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert any(not torch.equal(value, value.bfloat16().float()) for value in weights.values())
    for name in ("loss", "tangent_norm", "gradient_norm"):
        # eight bits: half a per cent per operation, of which a few dozen stand one after another
        torch.testing.assert_close(found[f"0 {name}"], expected[f"0 {name}"], rtol=0.1, atol=0)
        assert not torch.equal(found[f"0 {name}"], expected[f"0 {name}"])


@pytest.mark.parametrize("kind", ["blocks", "matmuls"])
@pytest.mark.parametrize("family", SHAPES)
def test_checkpointing_changes_no_bit_and_keeps_less(kind: str, family: str, tmp_path: Path) -> None:
    build(family, tmp_path / family)
    kept: dict[str, int] = {}

    def gradients(how: str) -> dict[str, Tensor]:
        denoiser = loaded(tmp_path / family)
        checkpoint_blocks(denoiser.blocks(), how)
        batch = Made(denoiser, SHAPES[family]).batch(0, 0, 2)
        sizes: list[int] = []

        def keep(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = denoiser(batch.x0, torch.tensor([1.0, 0.5]), batch.condition).square().mean()
        kept[how] = sum(sizes)
        loss.backward()
        return {name: p.grad for name, p in denoiser.named_parameters() if p.grad is not None}

    expected, found = gradients("none"), gradients(kind)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert found.keys() == expected.keys()
    assert kept[kind] < 0.7 * kept["none"]

"""Context parallelism: two ranks with half of the tokens each equal one rank with all tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from families import build
from processes import on_ranks
from torch import Tensor

from infra.commands.families import family_of
from rcm_core.errors import InputError
from rcm_core.jvp import flash_jvp, joint_jvp, jvp
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.training.parallel.collectives import average_gradients
from rcm_core.training.parallel.ulysses import Ulysses

FAMILIES = ["cosmos", "longcat", "sd3", "wan"]
SHAPES = {"wan": (2, 3, 4, 8), "cosmos": (4, 2, 4, 8), "sd3": (4, 1, 8, 8), "longcat": (16, 1, 8, 8)}


def loaded(folder: Path) -> Denoiser:
    denoiser = load_denoiser(folder, family_of(folder))
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in denoiser.parameters():  # as initialised many modules hide what they are given
            parameter.normal_(0, 0.2, generator=rng)
    return denoiser


def measured(folder: Path, denoiser: Denoiser, shape: tuple[int, ...], world: int) -> dict[str, Tensor]:
    """Return velocity, loss, tangent and gradients, from separate passes and from the joint pass."""
    rng = torch.Generator().manual_seed(0)
    _, condition = denoiser.family.example(denoiser.network.config, 2, rng)
    x, dx = torch.randn(2, 2, *shape, generator=rng)
    t, dt = torch.tensor([1.2, 0.4]), torch.tensor([0.3, 0.2])
    found: dict[str, Tensor] = {}
    with torch.no_grad(), flash_jvp():
        found["value"], found["tangent"] = jvp(lambda s, a: denoiser(s, a, condition), (x, t), (dx, dt))

    def gradients(name: str, F: Tensor) -> None:
        loss = (F - x).square().mean()
        loss.backward()
        average_gradients(denoiser, world)
        found[f"{name} loss"] = loss.detach()
        found.update(
            {f"{name} {n}": p.grad.clone() for n, p in denoiser.named_parameters() if p.grad is not None}
        )
        denoiser.zero_grad()

    gradients("plain", denoiser(x, t, condition))
    F, found["joint tangent"] = joint_jvp(
        lambda s, a: denoiser(s, a, condition), (x, t), (dx, dt), denoiser.blocks()
    )
    gradients("joint", F)
    return found


def on_a_rank(rank: int, places: list[Path]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{places[0].parent / 'meeting'}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    for folder in places:
        denoiser = loaded(folder)
        Ulysses(denoiser.network, denoiser.family.tokens, dist.group.WORLD)
        found = measured(folder, denoiser, SHAPES[folder.name], 2)
        torch.save(found, folder.parent / f"{folder.name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sequence")
    for name in FAMILIES:
        build(name, place / name)
    on_ranks(on_a_rank, ([place / name for name in FAMILIES],), 2)
    return {name: place / name for name in FAMILIES}


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_tangent_and_gradients_are_those_of_one_rank(name: str, places: dict[str, Path]) -> None:
    expected = measured(places[name], loaded(places[name]), SHAPES[name], 1)
    ranks: list[dict[str, Tensor]] = [torch.load(f"{places[name]}-{rank}.pt") for rank in (0, 1)]
    for found in ranks:
        assert found.keys() == expected.keys()
        for what, value in expected.items():
            # float32 sums in another order: a relative 1e-5 of the largest value
            scale = float(value.abs().max())
            torch.testing.assert_close(
                found[what], value, rtol=0, atol=1e-5 * max(scale, 1e-3), msg=lambda m, w=what: f"{w}: {m}"
            )
    assert all(torch.equal(ranks[0][what], ranks[1][what]) for what in expected)


def alone(denoiser: Denoiser, size: int) -> Ulysses:
    """Return the hooks of the first of ``size`` ranks without communication."""

    class Group:
        def size(self) -> int:
            return size

        def rank(self) -> int:
            return 0

    group: Any = Group()
    return Ulysses(denoiser.network, denoiser.family.tokens, group)


def test_what_does_not_divide_is_refused(tmp_path: Path) -> None:
    build("sd3", tmp_path / "sd3")
    with pytest.raises(InputError, match=r"train\.parallel\.context = 4 does not divide the 2 heads"):
        alone(loaded(tmp_path / "sd3"), 4)
    denoiser = loaded(tmp_path / "sd3")
    alone(denoiser, 2)
    _, condition = denoiser.family.example(denoiser.network.config, 1, torch.Generator().manual_seed(0))
    with pytest.raises(
        InputError, match=r"a sample has 9 tokens, which train\.parallel\.context = 2 does not divide"
    ):
        denoiser(torch.zeros(1, 4, 1, 6, 6), torch.tensor([1.0]), condition)

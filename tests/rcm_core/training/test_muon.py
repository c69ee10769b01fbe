"""Muon updates matrices along orthogonal directions and all other weights as AdamW does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rcm_core.rng import generator
from rcm_core.training.checkpointing import checkpoint
from rcm_core.training.ema import PowerEMA
from rcm_core.training.muon import MOMENTUM, SCALE, Muon, orthogonalise


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.wide = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inlet(x)
        for block in self.blocks:
            x = x + block(x).tanh()
        return self.wide(x)


def network() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def train(net: Net, optimiser: torch.optim.Optimizer, steps: int, first: int = 0) -> float:
    loss = torch.zeros(())
    for step in range(first, first + steps):
        x = torch.randn(32, 6, generator=generator("muon", step))
        loss = (net(x) - x[:, :3].sin()).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return float(loss.detach())


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 4, 16), (2, 16, 4)])
def test_singular_values_move_to_one_and_vectors_stay(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=generator("matrices", *shape))
    moved = orthogonalise(matrices)
    values = torch.linalg.svdvals(moved)
    # the iteration's own band: it trades exactness for speed
    assert values.min() > 0.6
    assert values.max() < 1.25
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    inside = left.mT @ moved @ right.mT
    off = inside - torch.diag_embed(torch.diagonal(inside, dim1=1, dim2=2))
    # bfloat16 rounds at 0.4 %, through five cubic steps that amplify it
    assert off.abs().max() < 0.1


def test_the_first_step_is_of_the_size_that_is_said() -> None:
    net = network()
    before = net.blocks[0].weight.detach().clone()
    train(net, Muon(net, 0.1, (0.9, 0.99), 0.0), 1)
    step = (net.blocks[0].weight.detach() - before).square().mean().sqrt()
    # an orthogonal 8x8 matrix has entries of root mean square 8^-1/2, and is scaled by 8^1/2
    assert 0.6 < float(step) / (0.1 * SCALE) < 1.25
    assert 0 < MOMENTUM < 1


def test_what_is_no_matrix_of_a_block_moves_as_adamw_moves_it() -> None:
    ours, theirs = network(), network()
    train(ours, Muon(ours, 0.01, (0.9, 0.99), 0.01), 1)
    train(theirs, torch.optim.AdamW(theirs.parameters(), 0.01, (0.9, 0.99), weight_decay=0.01), 1)
    for name, value in theirs.named_parameters():
        same = torch.allclose(dict(ours.named_parameters())[name], value, atol=1e-6)
        assert same == (name not in ("blocks.0.weight", "blocks.1.weight"))


def test_it_learns() -> None:
    net = network()
    first = train(net, Muon(net, 0.02, (0.9, 0.99), 0.0), 1)
    assert train(net, Muon(net, 0.02, (0.9, 0.99), 0.0), 100, 1) < 0.1 * first


def test_resumed_is_uninterrupted(tmp_path: Path) -> None:
    import torch.distributed as dist

    whole = network()
    optimiser = Muon(whole, 0.01, (0.9, 0.99), 0.01)
    train(whole, optimiser, 4)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        ema = PowerEMA(whole, (0.1,))
        with checkpoint.alone_if_one():
            progress = {"step": 4, "student_updates": 4, "updates": {"s": 4}}
            checkpoint.save(
                tmp_path / "c", checkpoint.gather({"s": whole}, {"s": optimiser}, ema), progress, 0, None
            )
        train(whole, optimiser, 4, 4)
        again = network()
        fresh = Muon(again, 0.01, (0.9, 0.99), 0.01)
        checkpoint.load(tmp_path / "c", {"s": again}, {"s": fresh}, PowerEMA(again, (0.1,)))
        train(again, fresh, 4, 4)
    finally:
        dist.destroy_process_group()
    for name, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


def test_matrices_are_found_in_a_network_that_is_wrapped() -> None:
    """The trainer's networks are wrapped; a missed matrix would silently be updated by AdamW."""
    whole = nn.Module()
    whole.network = network()
    bare, wrapped = (Muon(net, 0.01, (0.9, 0.99), 0.0) for net in (network(), whole))
    assert [len(g["params"]) for g in bare.param_groups] == [len(g["params"]) for g in wrapped.param_groups]
    assert [len(g["params"]) for g in bare.param_groups] == [2, 6]

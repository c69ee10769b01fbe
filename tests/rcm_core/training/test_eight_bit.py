"""AdamW with 8-bit moments: close to float32, bitwise equal after a resume, a quarter of the memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loops import SETTINGS
from resumed import trained
from torch import Tensor, nn
from workspaces import configure

from rcm_core.config.load import load_params
from rcm_core.errors import InputError
from rcm_core.preflight.dry_run import EIGHT_BIT
from rcm_core.preflight.held_memory import local_bytes


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torchao compiles its step, for minutes on a CPU; this is the same arithmetic. It lies apart from the other
    packages: diffusers imports it wherever it finds it, which takes time and says things on stderr.
    """
    monkeypatch.syspath_prepend(Path(sys.prefix) / "eightbit")
    with torch.compiler.set_stance("force_eager"):
        yield


def moved(weights: dict[str, Tensor], start: dict[str, Tensor]) -> Tensor:
    return torch.cat(
        [(weights[name] - start[name]).flatten() for name in start if name.startswith("student network")]
    )


# diffusers returns a view; nothing changes it in place
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("sharded", [False, True])
def test_it_trains_nearly_what_float32_does_and_goes_on_to_the_same_bits(
    sharded: bool, workspace: Path, tmp_path: Path
) -> None:
    configure(
        workspace, {"train.parallel.offload": ["teacher"] if sharded else []}
    )  # it shards, also on one rank
    start = trained(workspace, tmp_path / "start", 0)
    exact = trained(workspace, tmp_path / "exact", 12)
    configure(workspace, {"train.optimiser": "adamw8bit"})
    whole = trained(workspace, tmp_path / "whole", 12)
    parts = trained(workspace, tmp_path / "parts", 8, 12)
    assert all(torch.equal(whole[name], value) for name, value in parts.items())
    ours, theirs = moved(whole, start), moved(exact, start)
    assert not torch.equal(ours, theirs)
    # every moment is off by up to 1 % of its block's largest, the update by some per cent of itself
    assert float((ours - theirs).norm()) < 0.1 * float(theirs.norm())


def test_moments_take_what_the_plan_says() -> None:
    from torchao.optim import AdamW8bit

    layer = nn.Linear(256, 256, bias=False)
    optimiser = AdamW8bit(layer.parameters())
    layer(torch.ones(1, 256)).sum().backward()
    optimiser.step()
    state = optimiser.state[layer.weight]
    for name in ("exp_avg", "exp_avg_sq"):
        # plus a table of 256 values
        assert local_bytes(state[name]) == EIGHT_BIT * 4 * layer.weight.numel() + 4 * 256


def test_eps_bounds_its_step_as_float32_s() -> None:
    """The gradient is 1: Adam's first step is lr / (1 + eps)."""
    for eight_bit in (True, False):
        layer = nn.Linear(64, 64, bias=False)
        optimiser = replace(SETTINGS, eight_bit=eight_bit, eps=3.0).optimiser("student", layer)
        before = layer.weight.detach().clone()
        layer(torch.ones(1, 64)).sum().backward()
        optimiser.step()
        torch.testing.assert_close(
            before - layer.weight.detach(), torch.full((64, 64), 1e-3 / 4), rtol=0.01, atol=0
        )


def test_without_torchao_it_is_refused(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcm_core.config.load.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"needs torchao, which is not installed; pip install 'rcm-distill\[eightbit\]'"
    ):
        configure(workspace, {"train.optimiser": "adamw8bit"})
    monkeypatch.undo()
    monkeypatch.syspath_prepend(Path(sys.prefix) / "eightbit")
    with pytest.raises(
        InputError, match=r"cannot change the number of workers during training, but train\.min_workers = 1"
    ):
        configure(workspace, {"train.workers": 2, "train.min_workers": 1})
    configure(workspace, {"train.workers": 1, "train.min_workers": None})
    assert load_params(workspace / "params.yaml").train.optimiser == "adamw8bit"

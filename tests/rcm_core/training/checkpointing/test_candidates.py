"""Candidates on disk: the precision of sampling, and the number that is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import BUILDERS, build
from safetensors.torch import load_file

from rcm_core.networks.denoiser import load_denoiser, lower
from rcm_core.registry import find_family
from rcm_core.samplers.jobs import network_of
from rcm_core.training.checkpointing.candidates import (
    drop_candidates,
    earliest_step,
    keep_newest,
    write_candidates,
)
from rcm_core.training.ema import PowerEMA

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("name", BUILDERS)
def test_bfloat16_candidates_sample_as_float32_ones_do(name: str, tmp_path: Path) -> None:
    build(name, tmp_path)
    student = load_denoiser(tmp_path, find_family(name))
    ema = PowerEMA(student, [0.1])
    sizes, networks = {}, {}
    for precision in ("float32", "bfloat16"):
        write_candidates(tmp_path / precision, 6, student, ema, 0, None, precision)
        (folder,) = tmp_path.glob(f"{precision}/step_000006-ema_0.1/transformer")
        sizes[precision] = (folder / WEIGHTS).stat().st_size
        networks[precision] = network_of(str(tmp_path), name, str(folder), "cpu", "bfloat16").network
    assert sizes["bfloat16"] < 0.8 * sizes["float32"]
    lowered = lower(student).network.state_dict()
    for network in networks.values():
        found = network.state_dict()
        assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in lowered.items())
    kept = {k: v.dtype for k, v in load_file(folder / WEIGHTS).items()}
    exact = f"{student.family.time_embedder}."
    assert {v for k, v in kept.items() if k.startswith(exact)} == {torch.float32}


def test_the_newest_stay(tmp_path: Path) -> None:
    for step in (2, 4, 6):
        for length in (0.05, 0.1):
            (tmp_path / f"step_{step:06d}-ema_{length:g}").mkdir()
    keep_newest(tmp_path, 2)
    assert {p.name[:11] for p in tmp_path.iterdir()} == {"step_000004", "step_000006"}
    drop_candidates(tmp_path, 6)
    assert len(list(tmp_path.iterdir())) == 2
    assert [earliest_step(2, 7, keep) for keep in (None, 1, 2, 9)] == [2, 6, 4, 2]
    assert earliest_step(8, 7, None) == earliest_step(8, 7, 1) == 7

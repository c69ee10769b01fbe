"""A checkpoint is independent of the number of ranks that wrote it: 1 rank, then 2, then 1 again, or 4."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from processes import on_ranks
from ranks import PARTS, Context, continue_on, trainer
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.system
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def test_saved_on_one_continued_on_two_continued_on_one_or_four(
    tiny_run: Path, tmp_path: Path, group: None
) -> None:
    pipeline = tiny_run / "runs/teacher/pipeline"
    states = {name: tmp_path / name for name in ("whole", "one", "two", "end", "four")}
    for state in states.values():
        state.mkdir()
    whole = trainer(pipeline, Context(0, 1, states["whole"], None), until=6, accumulate=PARTS)
    whole.run()
    trainer(pipeline, Context(0, 1, states["one"], None), until=2, accumulate=PARTS).run()

    arguments = (2, pipeline, states["two"], states["one"] / "step_2", 4)
    on_ranks(continue_on, arguments, 2)

    saved = Context(0, 1, states["end"], states["two"] / "step_4")
    last = trainer(pipeline, saved, until=6, accumulate=PARTS)
    assert (last.step, last.student_updates) == (4, 4)
    for length in (0.05, 0.1):  # one rank reads bitwise what two ranks wrote
        written = load_file(states["two"] / "candidates" / f"step_000004-ema_{length}" / WEIGHTS)
        read = {n.removeprefix("network."): w for n, w in last.ema.weights(length).items()}
        assert written.keys() == read.keys()
        assert all(torch.equal(written[name], value) for name, value in read.items())
    last.run()

    arguments = (4, pipeline, states["four"], states["two"] / "step_4", 6)
    on_ranks(continue_on, arguments, 4)
    for length in (0.05, 0.1):
        name = f"candidates/step_000006-ema_{length}/{WEIGHTS}"
        four, one = (flat(load_file(states[s] / name)) for s in ("four", "whole"))
        moved = (one - flat(load_file(pipeline / WEIGHTS))).norm()
        assert (four - one).norm() < 1e-5 * moved  # as below

    begin = load_file(pipeline / WEIGHTS)
    ours, theirs = (dict(t.modules["student"].network.state_dict()) for t in (last, whole))
    moved = (flat(theirs) - flat(begin)).norm()
    # gradients summed in another order, six Adam steps: float32 rounding (4e-7 was seen)
    assert (flat(ours) - flat(theirs)).norm() < 1e-5 * moved
    # moments and step counts are restored: without them Adam's first step would again be 1e-3 in every weight
    steps = {float(s["step"]) for s in last.optimisers["student"].state.values()}
    assert steps == {6.0}

"""The embedded teacher's loss: zero exactly at the optimum, conditions dropped at the requested rate."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rcm_core.diffusion.guidance import replace_rows
from rcm_core.diffusion.trigflow import per_sample
from rcm_core.protocols import Batch, Condition, Networks
from rcm_core.rng import generator
from rcm_core.training.flow_matching import FlowMatching

POINT = torch.tensor([0.7, -0.3]).view(1, 2, 1, 1, 1)


def perfect(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Return the velocity of a distribution with a single point: x determines z."""
    z = (x - per_sample(t.cos(), x) * POINT) / per_sample(t.sin(), x)
    return per_sample(t.cos(), x) * z - per_sample(t.sin(), x) * POINT


def batch(count: int) -> Batch:
    text = torch.arange(1, count + 1).float().view(-1, 1, 1)
    return Batch({"text": text}, {"text": torch.zeros(1, 1, 1)}, POINT.expand(count, 2, 1, 1, 1))


def test_the_loss_is_zero_at_the_optimum_and_positive_elsewhere() -> None:
    method = FlowMatching(0.1)
    (update,) = method.updates(Networks(perfect), batch(64), 0, generator(0))
    assert update.roles == ("student",)
    assert float(update.loss) < 1e-9  # float32, divided by sines of logit-normal times
    off = lambda x, t, c: perfect(x, t, c) + 0.1  # noqa: E731
    (worse,) = method.updates(Networks(off), batch(64), 0, generator(0))
    # an error of F is an error of u times cos t + sin t, which is between 1 and sqrt 2
    assert 0.01 <= float(worse.loss) <= 0.02
    assert method.student_update(0)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_conditions_are_dropped_as_often_as_asked(share: float) -> None:
    seen: list[Tensor] = []

    def watching(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        seen.append(condition["text"].flatten())
        return perfect(x, t, condition)

    count = 4000
    list(FlowMatching(share).updates(Networks(watching), batch(count), 0, generator(1)))
    dropped = float((seen[0] == 0).float().mean())
    assert dropped == pytest.approx(share, abs=3 * (share * (1 - share) / count) ** 0.5)  # three sigma
    kept = seen[0][seen[0] > 0]
    assert torch.equal(kept, torch.arange(1, count + 1).float()[seen[0] > 0])


@pytest.mark.parametrize("mean", [0.0, 0.8])
def test_flow_times_are_logit_normal_about_their_mean(mean: float) -> None:
    seen: list[Tensor] = []

    def watching(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        seen.append(t)
        return perfect(x, t, condition)

    count = 4000
    list(FlowMatching(0.1, mean).updates(Networks(watching), batch(count), 0, generator(1)))
    logit = seen[0].tan().log()  # of tau = tan t / (1 + tan t)
    assert float(logit.mean()) == pytest.approx(mean, abs=3 / count**0.5)  # three sigma
    assert float(logit.std()) == pytest.approx(1, abs=3 / (2 * count) ** 0.5)


def test_rows_are_replaced_where_they_are_named() -> None:
    condition, other = {"text": torch.ones(3, 2, 4)}, {"text": torch.zeros(1, 2, 4)}
    found = replace_rows(condition, other, torch.tensor([True, False, True]))["text"]
    assert found.sum(dim=(1, 2)).tolist() == [0, 8, 0]
    assert float(condition["text"].sum()) == 24  # not in place

import pytest
import torch

from rcm_core.diffusion.guidance import Guided
from rcm_core.errors import InputError


class Recorder:
    """A velocity that depends on all its inputs and records the batch sizes of its calls."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, x, t, condition):
        self.sizes.append(len(x))
        return x * t.reshape(-1, 1) + condition["text"] ** 2


@pytest.fixture
def problem():
    rng = torch.Generator().manual_seed(0)
    x, text, null = (torch.randn(3, 2, generator=rng, dtype=torch.float64) for _ in range(3))
    return x, torch.tensor([0.1, 0.7, 1.5], dtype=torch.float64), {"text": text}, {"text": null}


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 5.0])
def test_e11_extrapolates_from_null_to_condition(problem, scale):
    x, t, condition, negative = problem
    found = Guided(Recorder(), scale, negative)(x, t, condition)
    plain, null = Recorder()(x, t, condition), Recorder()(x, t, negative)
    torch.testing.assert_close(found, null + scale * (plain - null), atol=1e-14, rtol=0)


def test_one_network_call_of_twice_the_batch_and_none_wasted_without_guidance(problem):
    x, t, condition, negative = problem
    guided, unguided = Recorder(), Recorder()
    Guided(guided, 3.0, negative)(x, t, condition)
    Guided(unguided, 1.0, negative)(x, t, condition)
    assert guided.sizes == [6]
    assert unguided.sizes == [3]


def test_one_negative_row_stands_for_the_batch(problem):
    x, t, condition, negative = problem
    row = {"text": negative["text"][:1]}
    whole = {"text": row["text"].expand(3, 2)}
    found = Guided(Recorder(), 2.0, row)(x, t, condition)
    assert torch.equal(found, Guided(Recorder(), 2.0, whole)(x, t, condition))


def test_conditions_of_different_names_are_refused(problem):
    x, t, condition, _ = problem
    with pytest.raises(InputError, match="negative condition has \\['label'\\]"):
        Guided(Recorder(), 2.0, {"label": x})(x, t, condition)

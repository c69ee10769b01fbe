import pytest
import torch

from rcm_core.losses.masking import finite_mask, keep_rows, mean_over


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_mask_finds_one_bad_element_in_any_tensor(bad):
    first, second = torch.zeros(3, 2, 2), torch.zeros(3, 4)
    first[0, 1, 1], second[2, 3] = bad, bad
    assert finite_mask(first, second).tolist() == [False, True, False]


def test_left_out_rows_have_no_gradient_and_poison_nothing():
    weight = torch.ones(2, requires_grad=True)
    x = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [3.0, 4.0]])
    mask = finite_mask(x)

    def loss(rows: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return mean_over(kept, (keep_rows(kept, rows) * weight).square().sum(1))

    (found,) = torch.autograd.grad(loss(x, mask), weight)
    (expected,) = torch.autograd.grad(loss(x[mask], torch.ones(2, dtype=torch.bool)), weight)
    assert torch.equal(found, expected)


def test_nothing_left_is_a_zero_with_a_zero_gradient():
    weight = torch.ones(2, requires_grad=True)
    mask = torch.zeros(3, dtype=torch.bool)
    loss = mean_over(mask, (keep_rows(mask, torch.full((3, 2), torch.nan)) * weight).sum(1))
    (gradient,) = torch.autograd.grad(loss, weight)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros(2))

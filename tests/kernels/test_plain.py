"""Passes without a tangent use PyTorch's attention, passes with a tangent the rerouted one."""

from __future__ import annotations

import torch
from rcm_kernels.plain import plain_attention, plain_backend
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from rcm_core.jvp import flash_jvp, jvp

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draw() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, 7, 16, generator=rng).to(DEVICE) for _ in range(4)]


def test_the_same_output_and_gradient_with_every_option() -> None:
    q, k, v, upstream = draw()
    mask = torch.rand(7, 7, generator=torch.Generator().manual_seed(1)).to(DEVICE) > 0.3
    for options in ({}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": mask}):
        found = []
        for mode in (plain_attention(), torch.enable_grad()):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            with mode:
                out = torch.nn.functional.scaled_dot_product_attention(*leaves, **options)
            found.append([out, *torch.autograd.grad(out, leaves, upstream)])
        for mine, theirs in zip(*found):
            # one softmax by two algorithms in float32
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


def test_a_tangent_goes_on_to_the_mode_that_knows_it() -> None:
    q, k, v, along = draw()

    def call(x: Tensor) -> Tensor:
        with plain_attention():
            return torch.nn.functional.scaled_dot_product_attention(x, k, v)

    with torch.no_grad(), flash_jvp(backend="reference"):
        value, tangent = jvp(call, (q,), (along,))
        expected = jvp(lambda x: torch.nn.functional.scaled_dot_product_attention(x, k, v), (q,), (along,))
    assert torch.equal(value, expected[0])
    assert torch.equal(tangent, expected[1])
    torch.testing.assert_close(value, sdpa(q, k, v), atol=1e-5, rtol=1e-5)


def test_a_cpu_has_one_backend() -> None:
    assert plain_backend(torch.device("cpu")) == "torch"

"""Properties of softmax attention and its tangent for arbitrary numbers and every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rcm_kernels import attention_jvp
from rcm_kernels.attention_jvp import chunked
from rcm_kernels.dispatch import triton_interprets
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference", "chunked"] if triton_interprets() is None else ["reference", "chunked", "triton"]
SIZES = ((2, 2, 19, 24), (2, 2, 21, 24), (2, 2, 21, 16))
# sums of some twenty float32 products of order 1, in another order
CLOSE: dict[str, float] = {"atol": 3e-6, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "BLOCK", 5)


def draw(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Draw q, k, v and their tangents."""
    rng = torch.Generator().manual_seed(0)
    drawn = [torch.randn(s, generator=rng, dtype=torch.float64) for s in (*SIZES, *SIZES)]
    return [x.to(DEVICE, dtype) for x in drawn]


def call(given: list[Tensor], backend: str, **options: Any) -> tuple[Tensor, Tensor]:
    return attention_jvp(*given, backend=backend, **options)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_keys_does_not_matter(backend: str) -> None:
    q, k, v, tq, tk, tv = draw()
    order = torch.randperm(k.shape[2], generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = call([q, k[:, :, order], v[:, :, order], tq, tk[:, :, order], tv[:, :, order]], backend)
    for mine, theirs in zip(found, call([q, k, v, tq, tk, tv], backend)):
        torch.testing.assert_close(mine, theirs, **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_added_to_a_row_of_scores_changes_nothing(backend: str) -> None:
    given = draw()
    constants = torch.linspace(-30, 30, SIZES[0][2], device=DEVICE)[:, None]
    found = call(given, backend, attn_mask=constants.expand(-1, SIZES[1][2]))
    for mine, theirs in zip(found, call(given, backend)):
        # scores of 30 carry roundings of 30 eps
        torch.testing.assert_close(mine, theirs, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_head_of_every_sample_is_alone(backend: str) -> None:
    given = draw()
    whole = call(given, backend)
    for sample in range(2):
        for head in range(2):
            alone = call([x[sample : sample + 1, head : head + 1] for x in given], backend)
            for mine, theirs in zip(alone, whole):
                torch.testing.assert_close(mine[0, 0], theirs[sample, head], **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tangent_is_linear(backend: str) -> None:
    q, k, v, *along = draw()
    other = [x.flip(-1) for x in along]
    both = call([q, k, v, *[2 * a - 3 * b for a, b in zip(along, other)]], backend)[1]
    parts = [call([q, k, v, *t], backend)[1] for t in (along, other)]
    torch.testing.assert_close(both, 2 * parts[0] - 3 * parts[1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tangent_is_the_limit_of_central_differences(backend: str) -> None:
    """In float64 with h = 1e-5: h^2 times third derivatives, rounding 1e-16 / h."""
    wide = draw(torch.float64)
    h = 1e-5
    ahead, behind = ([x + s * h * t for x, t in zip(wide[:3], wide[3:])] for s in (1, -1))
    difference = (call(ahead, "reference")[0] - call(behind, "reference")[0]) / (2 * h)
    exact = backend != "triton"
    found = call(wide if exact else draw(), backend)[1].double()
    tolerance = {"atol": 1e-9, "rtol": 1e-8} if exact else {"atol": 1e-5, "rtol": 1e-5}  # float32 there
    torch.testing.assert_close(found, difference, **tolerance)


@pytest.mark.skipif("triton" not in BACKENDS, reason="Triton exists on Linux only")
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_descriptors_read_and_write_what_pointers_do(
    kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rcm_kernels.attention_jvp import backward, forward, tiles

    def five() -> list[Tensor]:
        given = draw(kind)
        leaves = [x.requires_grad_() for x in given[:3]]
        out, tangent = call([*leaves, *given[3:]], "triton")
        return [out.detach(), tangent, *torch.autograd.grad(out, leaves, torch.ones_like(out))]

    used: list[bool] = []
    plain = tiles.describable

    def counted(*arguments: Any) -> bool:
        used.append(plain(*arguments))
        return used[-1]

    for module in (forward, backward):
        monkeypatch.setattr(module, "describable", counted)
    described = five()
    assert used == [True, True]
    for module in (forward, backward):
        monkeypatch.setattr(module, "describable", lambda *_: False)
    for mine, theirs in zip(described, five()):
        if DEVICE == "cpu":
            assert torch.equal(mine, theirs)
        else:  # tiles of other sizes: sums in another order, rounded to ``kind``
            torch.testing.assert_close(mine, theirs, atol=4 * torch.finfo(kind).eps, rtol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["bnhd", "sliced", "expanded"])
def test_gradients_of_inputs_of_any_strides(form: str, backend: str) -> None:
    def shaped(x: Tensor) -> Tensor:
        if form == "bnhd":
            return x.transpose(1, 2).contiguous().transpose(1, 2)
        if form == "sliced":
            return torch.stack((x, torch.full_like(x, torch.nan)), -1).flatten(-2)[..., ::2]
        return x[:, :1].expand(-1, 2, -1, -1)

    def gradients(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in inputs]
        out = call([*leaves, *given[3:]], backend)[0]
        upstream = torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out).transpose(-1, -2)
        return torch.autograd.grad(out, leaves, upstream.contiguous().transpose(-1, -2))

    given = draw()
    strange = [shaped(x) for x in given[:3]]
    for mine, theirs in zip(gradients(strange), gradients([x.contiguous() for x in strange])):
        torch.testing.assert_close(mine, theirs, **CLOSE)

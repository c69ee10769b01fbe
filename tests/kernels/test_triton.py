"""The Triton kernels compared with float64 on small shapes: on a GPU, or else in Triton's interpreter."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from gate import DEVICE, KINDS, OPTIONS, SHAPES, check, draw, options_of, ours
from rcm_kernels import attention_jvp
from rcm_kernels.dispatch import triton_interprets
from torch import Tensor

pytestmark = pytest.mark.skipif(triton_interprets() is None, reason="Triton exists on Linux only")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_tangent_and_gradients_pass_the_gate_in_float32(shape: str, name: str) -> None:
    check(shape, options_of(shape, name), torch.float32)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize(("shape", "name"), [("odd", "plain"), ("cross", "boolean"), ("grouped", "all")])
def test_half_precision_passes_the_gate(shape: str, name: str, kind: torch.dtype) -> None:
    check(shape, options_of(shape, name), kind)


def test_logits_far_apart_with_one_dominant_key() -> None:
    eight = {"scale": 8.0 / 24**0.5}  # of standard deviation 8
    dominant = torch.zeros(15, 17)
    dominant[:, 5] = 30.0
    for options in (eight, {"attn_mask": dominant}, eight | {"attn_mask": dominant}):
        check("odd", options, torch.float32)


@pytest.mark.parametrize("present", ["".join(s) for n in range(4) for s in itertools.combinations("qkv", n)])
def test_absent_tangents_are_zero(present: str) -> None:
    primals, tangents = ([x.float() for x in draw("odd", seed)] for seed in (0, 1))
    given = [x if name in present else None for name, x in zip("qkv", tangents)]
    filled = [torch.zeros_like(x) if g is None else g for g, x in zip(given, tangents)]
    upstream = torch.ones(2, 2, 15, 24)
    some, all_ = (ours(tuple(primals), tuple(t), upstream, {}) for t in (given, filled))
    torch.testing.assert_close(some[1], all_[1], atol=1e-6, rtol=0)  # sums of 17 float32 products of order 1
    if not present:
        assert (some[1] == 0).all()


def test_a_zero_tangent_gives_exactly_zero() -> None:
    primals = tuple(x.float() for x in draw("odd"))
    found = ours(primals, tuple(torch.zeros_like(x) for x in primals), torch.ones(2, 2, 15, 24), {})
    assert (found[1] == 0).all()


def test_rows_without_keys_give_zeros() -> None:
    mask = torch.ones(15, 17, dtype=torch.bool)
    mask[3] = False
    primals, tangents = (tuple(x.float() for x in draw("odd", seed)) for seed in (0, 1))
    out, tangent, dq, dk, dv = ours(primals, tangents, torch.ones(2, 2, 15, 24), {"attn_mask": mask})
    for x in (out, tangent, dq):
        assert (x[..., 3, :] == 0).all()
    assert all(x.isfinite().all() for x in (out, tangent, dq, dk, dv))


@pytest.mark.parametrize("form", ["bnhd", "sliced", "expanded"])
def test_any_strides_without_copies(form: str) -> None:
    """Heads third, every second channel of a wider tensor, and one key head for all."""
    primals, tangents = (tuple(x.float() for x in draw("odd", seed)) for seed in (0, 1))
    expected = ours(primals, tangents, torch.ones(2, 2, 15, 24), {})
    if form == "bnhd":
        moved = [x.transpose(1, 2).contiguous().to(DEVICE) for x in (*primals, *tangents)]
        out, tangent = attention_jvp(*moved, layout="bnhd", backend="triton")
        assert out.shape == (2, 15, 2, 24)
        assert out.is_contiguous()
        assert torch.equal(out.transpose(1, 2).cpu(), expected[0])
        assert torch.equal(tangent.transpose(1, 2).cpu(), expected[1])
    elif form == "sliced":
        wide = [
            torch.stack((x, torch.full_like(x, torch.nan)), -1).flatten(-2) for x in (*primals, *tangents)
        ]
        found = attention_jvp(*[x.to(DEVICE)[..., ::2] for x in wide], backend="triton")
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])
    else:
        shared = [x[:, :1].expand(-1, 2, -1, -1) for x in (*primals, *tangents)]
        found = attention_jvp(*[x.to(DEVICE) for x in shared], backend="triton")
        copied = ours(*[tuple(x.contiguous() for x in xs) for xs in (shared[:3], shared[3:])],
                      torch.ones(2, 2, 15, 24), {})  # fmt: skip
        assert torch.equal(found[0].cpu(), copied[0])
        assert torch.equal(found[1].cpu(), copied[1])


def test_every_element_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is poisoned with NaN."""
    for name in ("empty_like", "empty"):
        plain = getattr(torch, name)
        monkeypatch.setattr(torch, name, lambda *a, _p=plain, **k: _p(*a, **k).fill_(torch.nan))
    plain_new = Tensor.new_empty
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: plain_new(*a, **k).fill_(torch.nan))
    primals, tangents = (tuple(x.float() for x in draw("cross", seed)) for seed in (0, 1))
    found = ours(primals, tangents, torch.ones(1, 2, 33, 40), {})
    assert all(x.isfinite().all() for x in found)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo itself does
def test_compiled_whole_it_gives_the_same_numbers() -> None:
    primals, tangents = ([x.float().to(DEVICE) for x in draw("odd", seed)] for seed in (0, 1))

    def five_of(call: Any) -> list[Tensor]:
        leaves = [x.clone().requires_grad_() for x in primals]
        out, tangent = call(*leaves, *tangents)
        return [out.detach(), tangent, *torch.autograd.grad(out.square().sum(), leaves)]

    def plain(*given: Tensor) -> tuple[Tensor, Tensor]:
        out, tangent = attention_jvp(*given, backend="triton")
        return 2 * out, tangent

    compiled = torch.compile(plain, fullgraph=True, backend="aot_eager")  # graphs and fakes, no compiler
    for mine, theirs in zip(five_of(compiled), five_of(plain)):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)

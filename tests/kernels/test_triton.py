"""The Triton kernels against float64: on a GPU where there is one, else in Triton's interpreter, on small shapes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from rcm_kernels import attention_jvp
from rcm_kernels.dispatch import triton_interprets
from torch import Tensor

pytestmark = pytest.mark.skipif(triton_interprets() is None, reason="Triton exists on Linux only")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter multiplies bfloat16 wrongly; the kernels widen there, and a GPU checks the real thing
KINDS = [torch.float32, torch.float16, torch.bfloat16]
# batch, query heads, key heads, queries, keys, channels of q and k, of v
SHAPES = {
    "one": (1, 1, 1, 1, 1, 16, 16),
    "odd": (2, 2, 2, 15, 17, 24, 24),
    "cross": (1, 2, 2, 33, 7, 72, 40),
    "grouped": (2, 4, 2, 18, 21, 16, 32),
    "ragged": (1, 1, 1, 40, 50, 112, 112),
}
EPS = torch.finfo(torch.float32).eps
OPTIONS = ("plain", "scale", "causal", "boolean", "additive", "broadcast", "lengths", "all")


def draw(shape: str, seed: int = 0) -> tuple[Tensor, ...]:
    """q, k, v in float64."""
    b, h, g, n, m, d, e = SHAPES[shape]
    rng = torch.Generator().manual_seed(seed)
    sizes = [(b, h, n, d), (b, g, m, d), (b, g, m, e)]
    return tuple(torch.randn(s, generator=rng, dtype=torch.float64) for s in sizes)


def options_of(shape: str, name: str) -> dict[str, Any]:
    b, h, _, n, m, _, _ = SHAPES[shape]
    rng = torch.Generator().manual_seed(9)
    boolean = torch.rand(b, h, n, m, generator=rng) > 0.4
    lengths = torch.randint(1, m + 1, (b,), generator=rng)
    additive = torch.randn(n, m, generator=rng)
    found: dict[str, dict[str, Any]] = {
        "plain": {},
        "scale": {"scale": 0.7},
        "causal": {"is_causal": True},
        "boolean": {"attn_mask": boolean},
        "additive": {"attn_mask": additive},
        "broadcast": {"attn_mask": boolean[:1, :, :, :1]},
        "lengths": {"key_lengths": lengths},
        "all": {"attn_mask": additive, "is_causal": True, "key_lengths": lengths, "scale": 0.2},
    }
    return found[name]


def oracle(options: dict[str, Any], group: int) -> Any:
    """Explicit softmax attention for ``torch.func.jvp``, in the dtype it is given."""
    mask = options.get("attn_mask")

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        allowed = torch.ones(q.shape[0], 1, 1, k.shape[-2], dtype=torch.bool)
        if "key_lengths" in options:
            allowed = torch.arange(k.shape[-2]) < options["key_lengths"][:, None, None, None]
        weight = torch.zeros(allowed.shape, dtype=q.dtype)
        if mask is not None and mask.dtype == torch.bool:
            allowed = allowed & mask
        elif mask is not None:
            weight = weight + mask.to(q.dtype)
        wide = [x.repeat_interleave(group, 1) for x in (k, v)]
        return masked(q, wide[0], wide[1], allowed, weight, options)

    return call


def masked(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, weight: Tensor, options: dict[str, Any]
) -> Tensor:
    S = (q @ k.mT) * options.get("scale", q.shape[-1] ** -0.5) + weight
    if options.get("is_causal"):
        allowed = allowed & torch.ones(S.shape[-2:], dtype=torch.bool).tril()
    allowed = allowed.expand(S.shape)
    P = S.masked_fill(~allowed, -1e4 if q.dtype == torch.float16 else -1e30).softmax(-1)
    return (P * allowed.any(-1, keepdim=True)) @ v


def largest_score(q: Tensor, k: Tensor, options: dict[str, Any]) -> float:
    """A bound on |scores|."""
    mask = options.get("attn_mask")
    added = float(mask.abs().max()) if mask is not None and mask.is_floating_point() else 0.0
    product = q.norm(dim=-1).max() * k.norm(dim=-1).max()
    return float(product) * options.get("scale", q.shape[-1] ** -0.5) + added


def five(
    call: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], upstream: Tensor
) -> list[Tensor]:
    """Output, tangent and three gradients of ``call``, in the dtype of the inputs."""
    value, moved = torch.func.jvp(call, primals, tangents)
    leaves = [x.detach().clone().requires_grad_() for x in primals]
    return [value.detach(), moved.detach(), *torch.autograd.grad(call(*leaves), leaves, upstream)]


def ours(
    primals: tuple[Tensor, ...],
    tangents: tuple[Tensor | None, ...],
    upstream: Tensor,
    options: dict[str, Any],
) -> list[Tensor]:
    leaves = [x.to(DEVICE, copy=True).requires_grad_() for x in primals]
    moved = [None if x is None else x.to(DEVICE) for x in tangents]
    placed = {n: x.to(DEVICE) if isinstance(x, Tensor) else x for n, x in options.items()}
    out, tangent = attention_jvp(*leaves, *moved, enable_gqa=True, backend="triton", **placed)
    gradients = torch.autograd.grad(out, leaves, upstream.to(DEVICE))
    return [x.detach().cpu() for x in (out, tangent, *gradients)]


def check(shape: str, options: dict[str, Any], kind: torch.dtype) -> None:
    """The gate: no farther from float64 than twice what naive operations in the same dtype are.

    The floor is for elements on which the naive error happens to vanish: a few roundings of the largest element, and
    for P = exp(S - L), recomputed in float32, the rounding of the largest score, which naive softmax has not.
    """
    rounded = [tuple(x.to(kind) for x in draw(shape, seed)) for seed in (0, 1)]
    b, h, g, n, _, _, e = SHAPES[shape]
    upstream = torch.randn(b, h, n, e, generator=torch.Generator().manual_seed(2)).to(kind)
    found = ours(rounded[0], rounded[1], upstream, options)
    call = oracle(options, h // g)
    exact = five(call, *(tuple(x.double() for x in xs) for xs in rounded), upstream.double())
    naive = five(call, *rounded, upstream)
    largest = largest_score(rounded[0][0].double(), rounded[0][1].double(), options)
    for name, mine, theirs, true in zip(("out", "tangent", "dq", "dk", "dv"), found, naive, exact):
        assert mine.dtype == kind
        floor = (4 * torch.finfo(kind).eps + largest * EPS) * max(1.0, float(true.abs().max()))
        allowed = 2 * float((theirs.double() - true).abs().max()) + floor
        error = float((mine.double() - true).abs().max())
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


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

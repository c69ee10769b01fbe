"""Accuracy gate of the kernels: at most twice the error of naive operations in the same dtype, against float64."""

from __future__ import annotations

from typing import Any

import torch
from rcm_kernels import attention_jvp
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter multiplies bfloat16 wrongly, so the kernels widen there; a GPU tests the real path
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
    """Draw q, k, v in float64."""
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
    """Return explicit softmax attention for ``torch.func.jvp``, in the dtype of its inputs."""
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
    """Return an upper bound of |scores|."""
    mask = options.get("attn_mask")
    added = float(mask.abs().max()) if mask is not None and mask.is_floating_point() else 0.0
    product = q.norm(dim=-1).max() * k.norm(dim=-1).max()
    return float(product) * options.get("scale", q.shape[-1] ** -0.5) + added


def five(
    call: Any, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], upstream: Tensor
) -> list[Tensor]:
    """Return output, tangent and three gradients of ``call``, in the dtype of the inputs."""
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
    """Assert that the error against float64 is at most twice that of naive operations in the same dtype.

    A floor covers elements whose naive error happens to vanish: a few roundings of the largest element, plus, for
    P = exp(S - L) recomputed in float32, the rounding of the largest score, which naive softmax does not have.
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

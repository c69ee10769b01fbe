"""The public calls: checks, and the choice between plain torch and Triton. Results have no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from rcm_kernels.dispatch import triton_interprets
from rcm_kernels.pairs import reference
from rcm_kernels.pairs.reference import ACTIVATIONS, Modulation, Pair

NORMS = ("layer", "rms")
WIDEST = 16384
"""Maximum number of channels in a row that a norm kernel can hold in registers."""


@torch.no_grad()
def modulated_norm(
    x: Tensor,
    tx: Tensor | None,
    *,
    kind: str = "layer",
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    tscale: Tensor | None = None,
    shift: Tensor | None = None,
    tshift: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Pair:
    """Return the adaptive normalisation ``norm(x) (1 + scale) + shift`` over the last dimension, and its tangent.

    x, tx [..., n, c]; weight, bias [c]; scale, shift and their tangents broadcast to x, as [b, 1, c] does. ``kind`` is
    layer (LayerNorm) or rms (RMSNorm). Source: DiT, arXiv 2212.09748, section 3.2. ValueError if shapes do not fit.
    """
    if kind not in NORMS:
        raise ValueError(f"unknown norm {kind!r}; use {' or '.join(NORMS)}")
    if (scale is None and tscale is not None) or (shift is None and tshift is not None):
        raise ValueError("scale or shift has a tangent but no value; pass both or neither")
    same(x, {"tx": tx})
    fits(x, {"scale": scale, "tscale": tscale, "shift": shift, "tshift": tshift})
    fits(x[..., 0, :], {"weight": weight, "bias": bias})
    by = Modulation(weight, bias, scale, tscale, shift, tshift)
    if uses_triton(backend, x, x.shape[-1]):
        from rcm_kernels.pairs import triton_rules

        return triton_rules.modulated_norm(x, tx, kind, by, eps)
    return reference.modulated_norm(x, tx, kind, by, eps)


@torch.no_grad()
def gated_residual(
    x: Tensor,
    tx: Tensor | None,
    h: Tensor,
    th: Tensor | None,
    gate: Tensor,
    tgate: Tensor | None,
    *,
    backend: str = "auto",
) -> Pair:
    """Return ``x + gate h`` and its tangent; x, h [..., n, c], ``gate`` broadcasts to them.

    ValueError for shapes that do not fit.
    """
    if h.shape != x.shape:
        raise ValueError(f"h has shape {list(h.shape)}, expected the shape {list(x.shape)} of x")
    same(x, {"tx": tx})
    same(h, {"th": th})
    fits(x, {"gate": gate, "tgate": tgate})
    if uses_triton(backend, x):
        from rcm_kernels.pairs import triton_rules

        return triton_rules.gated_residual(x, tx, h, th, gate, tgate)
    return reference.gated_residual(x, tx, h, th, gate, tgate)


@torch.no_grad()
def gated_activation(
    a: Tensor,
    ta: Tensor | None,
    b: Tensor | None = None,
    tb: Tensor | None = None,
    *,
    kind: str,
    backend: str = "auto",
) -> Pair:
    """Return ``act(a) b``, or ``act(a)`` without ``b``, and its tangent; ``kind`` is gelu, gelu_tanh or silu."""
    if kind not in ACTIVATIONS:
        raise ValueError(f"unknown activation {kind!r}; use {', '.join(ACTIVATIONS)}")
    if b is None and tb is not None:
        raise ValueError("b has a tangent but no value; pass both or neither")
    same(a, {"ta": ta, "b": b, "tb": tb})
    if uses_triton(backend, a):
        from rcm_kernels.pairs import triton_rules

        return triton_rules.gated_activation(a, ta, b, tb, kind)
    return reference.gated_activation(a, ta, b, tb, kind)


@torch.no_grad()
def rotary(x: Tensor, tx: Tensor | None, cos: Tensor, sin: Tensor, *, backend: str = "auto") -> Pair:
    """Rotate channels (2 i, 2 i + 1) of x [b, n, h, d], and of its tangent, by the angle of (token, i).

    cos, sin [n, d / 2]. Source: RoFormer, arXiv 2104.09864, equation 34.
    """
    expected = (x.shape[1], x.shape[-1] // 2) if x.ndim == 4 and x.shape[-1] % 2 == 0 else None
    if expected is None or cos.shape != expected or sin.shape != expected:
        raise ValueError(
            f"x {list(x.shape)}, cos {list(cos.shape)} and sin {list(sin.shape)} do not fit;"
            " expected [b, n, h, d] with d even, and [n, d / 2] twice"
        )
    same(x, {"tx": tx})
    if uses_triton(backend, x):
        from rcm_kernels.pairs import triton_rules

        return triton_rules.rotary(x, tx, cos, sin)
    return reference.rotary(x, tx, cos, sin)


@torch.no_grad()
def linear(x: Tensor, tx: Tensor | None, weight: Tensor, bias: Tensor | None = None) -> Pair:
    """Return ``x W^T + bias`` and ``tx W^T`` from one matrix product, which reads the weights once."""
    same(x, {"tx": tx})
    if tx is None:
        return torch.nn.functional.linear(x, weight, bias), None
    value, tangent = (torch.stack((x, tx)) @ weight.mT).unbind(0)
    return value if bias is None else value + bias, tangent


def same(x: Tensor, others: dict[str, Tensor | None]) -> None:
    """Raise ValueError unless all have the shape, dtype and device of ``x``."""
    for name, other in others.items():
        if other is not None and (other.shape, other.dtype, other.device) != (x.shape, x.dtype, x.device):
            raise ValueError(
                f"{name} is {other.dtype} {list(other.shape)} on {other.device}, expected {x.dtype}"
                f" {list(x.shape)} on {x.device}"
            )


def fits(x: Tensor, others: dict[str, Tensor | None]) -> None:
    """Raise ValueError unless all broadcast to ``x`` and have all its channels."""
    for name, other in others.items():
        if other is None:
            continue
        sizes = zip(reversed(other.shape), reversed(x.shape))
        if other.ndim > x.ndim or other.shape[-1] != x.shape[-1] or any(a not in (1, b) for a, b in sizes):
            raise ValueError(
                f"{name} has shape {list(other.shape)}, which does not broadcast to {list(x.shape)}"
            )


def uses_triton(backend: str, x: Tensor, width: int = 0) -> bool:
    """Return whether to use Triton: by default on a GPU; in its interpreter only on request."""
    if backend not in ("auto", "reference", "triton"):
        raise ValueError(f"unknown backend {backend!r}; use 'auto', 'reference' or 'triton'")
    if backend == "reference":
        return False
    interpreted = triton_interprets()
    missing = ""
    if interpreted is None:
        missing = "Triton is not installed"
    elif x.device.type != "cuda" and not interpreted:
        missing = f"the tensors are on {x.device}"
    elif x.dtype == torch.float64:
        missing = "its kernels take no float64"
    elif width > WIDEST:
        missing = f"its norm takes up to {WIDEST} channels, not {width}"
    if backend == "triton" and missing:
        raise ValueError(f"backend 'triton' is not available: {missing}; use 'auto'")
    return not missing and (backend == "triton" or x.device.type == "cuda")

"""The fused rules compared with PyTorch's forward mode, at the sizes of Wan2.1-1.3B."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rcm_kernels import pairs
from torch import Tensor

from experiments.kernels.timing import measure


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x[..., ::2], x[..., 1::2]
    c, s = cos[:, None], sin[:, None]
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2).to(x.dtype)


def rows(
    tokens: int, channels: int, heads: int, ffn: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Measure milliseconds of both and their ratio; the fused rule is used where it is faster."""
    rng = torch.Generator(device=device).manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, generator=rng, device=device, dtype=dtype)

    x, tx, h, th = (draw(1, tokens, channels) for _ in range(4))
    scale, tscale, shift, tshift, gate, tgate = (draw(1, 1, channels, dtype=torch.float32) for _ in range(6))
    wide, twide = (draw(1, tokens, ffn) for _ in range(2))
    q, tq = (draw(1, tokens, heads, channels // heads) for _ in range(2))
    cos, sin = (draw(tokens, channels // heads // 2, dtype=torch.float32) for _ in range(2))
    weight, bias = draw(ffn, channels), draw(ffn)

    def norm(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return (F.layer_norm(a.float(), (channels,), eps=1e-6) * (1 + b) + c).type_as(a)

    calls: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "modulated norm": (
            lambda: pairs.modulated_norm(x, tx, scale=scale, tscale=tscale, shift=shift, tshift=tshift),
            lambda: torch.func.jvp(norm, (x, scale, shift), (tx, tscale, tshift)),
        ),
        "gated residual": (
            lambda: pairs.gated_residual(x, tx, h, th, gate, tgate),
            lambda: torch.func.jvp(
                lambda a, b, g: (a.float() + b * g).type_as(a), (x, h, gate), (tx, th, tgate)
            ),
        ),
        "gelu": (
            lambda: pairs.gated_activation(wide, twide, kind="gelu_tanh"),
            lambda: torch.func.jvp(lambda a: F.gelu(a, approximate="tanh"), (wide,), (twide,)),
        ),
        "rotary": (
            lambda: pairs.rotary(q, tq, cos, sin),
            lambda: torch.func.jvp(lambda a: rotate_pairs(a, cos, sin), (q,), (tq,)),
        ),
        "linear": (
            lambda: pairs.linear(x, tx, weight, bias),
            lambda: torch.func.jvp(lambda a: F.linear(a, weight, bias), (x,), (tx,)),
        ),
    }
    found = {}
    with torch.no_grad():
        for name, (fused, plain) in calls.items():
            ours, theirs = measure(fused, device).milliseconds, measure(plain, device).milliseconds
            found[name] = {"fused": ours, "forward_mode": theirs, "times_faster": theirs / ours}
    return found

"""Fused values and tangents against float64 ``torch.func.jvp`` of the plain operations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rcm_kernels import pairs
from rcm_kernels.dispatch import triton_interprets
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["reference"] if triton_interprets() is None else ["reference", "triton"]
EPS = 1e-6


def layer_norm(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS) * (1 + scale) + shift


def rms_norm(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (F.rms_norm(x, x.shape[-1:], weight, EPS) + bias) * (1 + scale) + shift


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    c, s = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * c - odd * s, even * s + odd * c), -1).flatten(-2)


ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda a: F.gelu(a, approximate="tanh"),
    "silu": F.silu,
}


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]


def check(
    plain: Callable[..., Tensor],
    ours: Callable[..., tuple[Tensor, Tensor | None]],
    inputs: Mapping[str, Tensor],
    moving: tuple[str, ...],
    kind: torch.dtype,
) -> None:
    """The gate of the attention kernels: at most twice the error of plain operations in the same dtype, plus a few
    roundings of the largest element, for where that error happens to vanish.
    """
    primals = {n: v.to(kind) for n, v in inputs.items()}
    rng = torch.Generator().manual_seed(1)
    tangents = {n: torch.randn(v.shape, generator=rng).to(kind) for n, v in primals.items() if n in moving}

    def derivative(to: torch.dtype) -> tuple[Tensor, Tensor]:
        fixed = {n: v.to(to) for n, v in primals.items()}

        def call(*moved: Tensor) -> Tensor:
            return plain(**(fixed | dict(zip(tangents, moved))))

        along = tuple(t.to(to) for t in tangents.values())
        return torch.func.jvp(call, tuple(fixed[n] for n in tangents), along)

    exact = (
        derivative(torch.float64) if moving else (plain(**{n: v.double() for n, v in primals.items()}), None)
    )
    naive = derivative(kind) if moving else (plain(**primals), None)
    placed = {n: v.to(DEVICE) for n, v in primals.items()}
    found = ours(**placed, **{f"t{n}": tangents[n].to(DEVICE) if n in tangents else None for n in inputs})
    for name, mine, theirs, true in zip(("value", "tangent"), found, naive, exact):
        if true is None:
            assert mine is None
            continue
        assert mine is not None
        assert theirs is not None
        assert mine.dtype == kind
        floor = 4 * torch.finfo(kind).eps * max(1.0, float(true.abs().max()))
        allowed = 2 * float((theirs.double() - true).abs().max()) + floor
        error = float((mine.cpu().double() - true).abs().max())
        assert error <= allowed, f"{name}: {error:.3g} > {allowed:.3g}"


def subsets(names: str) -> list[tuple[str, ...]]:
    return [s for n in range(len(names.split()) + 1) for s in itertools.combinations(names.split(), n)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize("turn", [(1, 1, 40), (2, 1, 40), (2, 5, 40), (40,)])
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_modulated_norm(norm: str, turn: tuple[int, ...], kind: torch.dtype, backend: str) -> None:
    x, scale, shift, weight, bias = draw((2, 5, 40), turn, turn, (40,), (40,))
    inputs = {"x": x * 3 + 1, "scale": scale, "shift": shift, "weight": weight, "bias": bias}

    def ours(**given: Any) -> tuple[Tensor, Tensor | None]:
        given = {n: v for n, v in given.items() if n not in ("tweight", "tbias")}
        return pairs.modulated_norm(
            given.pop("x"), given.pop("tx"), kind=norm, eps=EPS, backend=backend, **given
        )

    for moving in subsets("x scale shift"):
        check({"layer": layer_norm, "rms": rms_norm}[norm], ours, inputs, moving, kind)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_without_modulation_and_of_one_channel_more_than_a_power_of_two(backend: str) -> None:
    (x,) = draw((3, 129))

    def ours(x: Tensor, tx: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return pairs.modulated_norm(x, tx, eps=EPS, backend=backend)

    check(lambda x: F.layer_norm(x, (129,), eps=EPS), ours, {"x": x}, ("x",), torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize("turn", [(1, 1, 40), (2, 1, 40), (2, 5, 40)])
def test_gated_residual(turn: tuple[int, ...], kind: torch.dtype, backend: str) -> None:
    x, h, gate = draw((2, 5, 40), (2, 5, 40), turn)
    for moving in subsets("x h gate"):
        check(
            lambda x, h, gate: x + gate * h,
            lambda x, tx, h, th, gate, tgate: pairs.gated_residual(
                x, tx, h, th, gate, tgate, backend=backend
            ),
            {"x": x, "h": h, "gate": gate},
            moving,
            kind,
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ACTS)
def test_gated_activation(kind: str, dtype: torch.dtype, backend: str) -> None:
    a, b = draw((2, 1500), (2, 1500))
    a = a * 4
    for moving in subsets("a b"):
        check(
            lambda a, b: ACTS[kind](a) * b,
            lambda **given: pairs.gated_activation(**given, kind=kind, backend=backend),
            {"a": a, "b": b},
            moving,
            dtype,
        )
    check(
        lambda a: ACTS[kind](a),
        lambda a, ta: pairs.gated_activation(a, ta, kind=kind, backend=backend),
        {"a": a},
        ("a",),
        dtype,
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
def test_rotary(kind: torch.dtype, backend: str) -> None:
    x, angle = draw((2, 7, 3, 10), (7, 5))
    fixed = angle.cos().float(), angle.sin().float()
    for moving in subsets("x"):
        check(
            lambda x: turned(x, *fixed),
            lambda x, tx: pairs.rotary(x, tx, *(w.to(DEVICE) for w in fixed), backend=backend),
            {"x": x},
            moving,
            kind,
        )


@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(with_bias: bool) -> None:
    x, weight, bias = draw((2, 5, 16), (24, 16), (24,))
    given = {"bias": bias.to(DEVICE, torch.float32)} if with_bias else {}
    for moving in subsets("x"):
        check(
            lambda x: F.linear(x, weight.to(x.dtype), bias.to(x.dtype) if with_bias else None),
            lambda x, tx: pairs.linear(x, tx, weight.to(DEVICE, torch.float32), **given),
            {"x": x},
            moving,
            torch.float32,
        )


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    x = torch.zeros(2, 5, 8)
    with pytest.raises(ValueError, match=r"tx is torch.float64 \[2, 5, 8\] on cpu, expected torch.float32"):
        pairs.modulated_norm(x, x.double())
    with pytest.raises(
        ValueError, match=r"scale has shape \[2, 3, 8\], which does not broadcast to \[2, 5, 8\]"
    ):
        pairs.modulated_norm(x, None, scale=torch.zeros(2, 3, 8))
    with pytest.raises(ValueError, match="unknown norm 'batch'; use layer or rms"):
        pairs.modulated_norm(x, None, kind="batch")
    with pytest.raises(ValueError, match="scale or shift has a tangent but no value"):
        pairs.modulated_norm(x, None, tscale=x)
    with pytest.raises(ValueError, match=r"h has shape \[2, 4, 8\], expected the shape \[2, 5, 8\] of x"):
        pairs.gated_residual(x, None, x[:, :4], None, x, None)
    with pytest.raises(ValueError, match="unknown activation 'relu'; use gelu, gelu_tanh, silu"):
        pairs.gated_activation(x, None, kind="relu")
    with pytest.raises(ValueError, match="with d even"):
        pairs.rotary(x[..., None], None, x[0], x[0])
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        pairs.gated_activation(x, None, kind="gelu", backend="cuda")
    with pytest.raises(ValueError, match="its kernels take no float64"):
        pairs.gated_activation(x.double().to(DEVICE), None, kind="gelu", backend="triton")

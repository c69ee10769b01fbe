"""Whole small unmodified diffusers transformers: every backend gives the tangent of central differences.

The networks of the families that are planned, built from their own classes; linear attention (SANA) has softmax
attention only across.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import (
    CosmosTransformer3DModel,
    LongCatImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from rcm_kernels.dispatch import triton_interprets
from torch import Tensor, nn

from rcm_core.jvp import flash_jvp, jvp

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Built = tuple[nn.Module, tuple[int, ...], Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]]
TEXT = (2, 5, 8)


def wan() -> Built:
    network = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=2, out_channels=2, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2,
    )  # fmt: skip
    return network, (2, 2, 2, 4, 4), lambda n, x, t, text: n(x, t, text, return_dict=False)[0]


def cosmos() -> Built:
    network = CosmosTransformer3DModel(
        in_channels=2, out_channels=2, num_attention_heads=2, attention_head_dim=16, num_layers=2, mlp_ratio=2.0,
        text_embed_dim=8, adaln_lora_dim=4, max_size=(4, 8, 8), concat_padding_mask=False,
        extra_pos_embed_type=None,
    )  # fmt: skip
    return network, (2, 2, 2, 4, 4), lambda n, x, t, text: n(x, t, text, return_dict=False)[0]


def sd3() -> Built:
    network = SD3Transformer2DModel(
        sample_size=4, in_channels=2, out_channels=2, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=4,
    )  # fmt: skip
    return network, (2, 2, 8, 8), lambda n, x, t, text: n(x, text, text[:, 0], t, return_dict=False)[0]


def longcat() -> Built:
    network = LongCatImageTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip

    def call(n: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        places = torch.arange(x.shape[1] + text.shape[1], device=x.device)[:, None].expand(-1, 3)
        found: Tensor = n(
            x,
            text,
            t / 1000,
            img_ids=places[text.shape[1] :],
            txt_ids=places[: text.shape[1]],
            return_dict=False,
        )[0]
        return found

    return network, (2, 9, 4), call


def sana() -> Built:
    network = SanaTransformer2DModel(
        in_channels=2, out_channels=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=8,
        mlp_ratio=2.0, sample_size=4,
    )  # fmt: skip
    return network, (2, 2, 4, 4), lambda n, x, t, text: n(x, text, t, return_dict=False)[0]


NETWORKS = {"wan": wan, "cosmos": cosmos, "sd3": sd3, "longcat": longcat, "sana": sana}


@pytest.fixture(params=NETWORKS)
def built(request: pytest.FixtureRequest) -> Built:
    """A network with weights so large that every part matters."""
    network, shape, call = NETWORKS[request.param]()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2, generator=rng)
    return network.to(DEVICE).eval(), shape, call


def tangent_by(built: Built, backend: str, dtype: torch.dtype) -> tuple[Tensor, Callable[[float], Tensor]]:
    """Return the tangent along state and time, and the network as a function of the step along it."""
    network, shape, call = built
    network.to(dtype)
    rng = torch.Generator().manual_seed(1)
    x, along, text = (
        torch.randn(s, generator=rng, dtype=torch.float64).to(DEVICE, dtype) for s in (shape, shape, TEXT)
    )
    t, pace = (torch.tensor(v, dtype=dtype, device=DEVICE) for v in ([300.0, 700.0], [0.5, -0.3]))
    with torch.no_grad(), flash_jvp(backend):
        tangent = jvp(lambda a, b: call(network, a, b, text), (x, t), (along, pace))[1]

    def at(h: float) -> Tensor:
        with torch.no_grad():
            return call(network, x + h * along, t + h * pace, text)

    return tangent, at


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_a_whole_network_agrees_with_central_differences(
    built: Built, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modules cast to float32 inside; that cast made the identity changes no formula, and differences in float64
    are an oracle to six digits: h^2 times third derivatives, rounding of float32 tables cancels.
    """
    monkeypatch.setattr(Tensor, "float", lambda self: self)
    plain = Tensor.to
    cast = (torch.float32,)
    monkeypatch.setattr(Tensor, "to", lambda x, *a, **k: x if a == cast else plain(x, *a, **k))
    tangent, at = tangent_by(built, backend, torch.float64)
    h = 1e-5
    difference = (at(h) - at(-h)) / (2 * h)
    assert float((tangent - difference).abs().max()) <= 1e-6 * float(difference.abs().max())


@pytest.mark.skipif(triton_interprets() is None, reason="Triton exists on Linux only")
def test_the_kernels_give_the_tangent_of_the_reference(built: Built) -> None:
    """Both in float32: roundings of a network of two blocks, relative to the largest element."""
    expected = tangent_by(built, "reference", torch.float32)[0]
    found = tangent_by(built, "triton", torch.float32)[0]
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())

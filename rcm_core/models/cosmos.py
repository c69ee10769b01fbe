"""Cosmos-Predict2 (text to image, video to world) through diffusers' unmodified CosmosTransformer3DModel.

Its preconditioning looks like EDM's and is a rectified flow: with tau = sigma / (1 + sigma) the input is
(1 - tau) x_sigma, which is (1 - tau) x0 + tau eps; the time is tau; and D = (1 - tau) x_sigma - tau output makes the
output eps - x0. Guidance is v_null + s (v_cond - v_null) here as everywhere; diffusers' Cosmos pipelines count from the
conditional velocity, so their guidance_scale is s - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.pipelines.check import check_pipeline
from rcm_core.pipelines.convert import Raw
from rcm_core.pipelines.folder import Encoder, Layout, empty_transformer, load_transformer
from rcm_core.pipelines.text_encoder import T5VideoCodec
from rcm_core.protocols import Condition, Parameterisation, Tokens

blocks = ("CosmosTransformerBlock",)
network_class = "CosmosTransformer3DModel"
time_layer = None  # its embedding is three times as wide as its tokens and enters every block without a bias
last_layer = "proj_out"
time_features = "time_embed.time_proj"
time_embedder = "time_embed.t_embedder"
tokens = Tokens("transformer_blocks.0", "proj_out", {"attn1": "none"}, rope="rope")
TEXT_LENGTH = 512
FRAMES_PER_SECOND = 16
GIVEN_TIME = 1e-4
"""Time of given frames (video to world): sigma_conditioning of diffusers' pipeline."""
LAYOUT = Layout(
    "cosmos",
    network_class,
    ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"),
    (("diffusers", "AutoencoderKLWan"),),
    (Encoder("text_encoder", "T5EncoderModel", "text_embed_dim"),),
)

RAW = Raw(
    (
        ("final_layer.adaln_modulation.", "norm_out.linear_"),
        ("final_layer.linear.", "proj_out."),
        ("x_embedder.proj.1.", "patch_embed.proj."),
        ("t_embedder.1.", "time_embed.t_embedder."),
        ("t_embedding_norm.", "time_embed.norm."),
        ("blocks.", "transformer_blocks."),
        ("adaln_modulation_self_attn.", "norm1.linear_"),
        ("adaln_modulation_cross_attn.", "norm2.linear_"),
        ("adaln_modulation_mlp.", "norm3.linear_"),
        (".self_attn.", ".attn1."),
        (".cross_attn.", ".attn2."),
        *((f".{part}_proj.", f".to_{part}.") for part in "qkv"),
        (".output_proj.", ".to_out.0."),
        (".q_norm.", ".norm_q."),
        (".k_norm.", ".norm_k."),
        (".mlp.layer1.", ".ff.net.0.proj."),
        (".mlp.layer2.", ".ff.net.2."),
    ),
    ("accum_", "pos_embedder.", "_extra_state"),
)


def check_folder(folder: Path) -> None:
    """Raise InputError unless ``folder`` is a complete Cosmos-Predict2 pipeline; reads headers only."""
    check_pipeline(LAYOUT, folder)


def load_network(folder: Path) -> nn.Module:
    """Return the transformer in ``folder/transformer``, float32, in eval mode; InputError unless complete Cosmos."""
    _without_torchvision()
    return load_transformer(LAYOUT, folder)


def empty_network(folder: Path) -> nn.Module:
    """Return the same network without weights: parameters on the meta device."""
    _without_torchvision()
    return empty_transformer(LAYOUT, folder)


def parameterisation(folder: Path) -> Parameterisation:  # noqa: ARG001 - all of Cosmos-Predict2 have this one
    """Return rectified flow with network time tau (E7, E8)."""
    return RectifiedFlow(time_scale=1.0)


def call(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Return the network's output for states ``x`` [B, C, T, H, W], times [B] and ``condition["text"]`` [B, L, D].

    Video to world: ``condition["frames"]`` [B, C, T, H, W] are latents of which ``condition["given"]`` [B, T] (1 or 0)
    are given; there the output is that of the path which ends in them.
    """
    _without_torchvision()
    text, frames = condition["text"], condition.get("frames")
    rest = {
        "encoder_hidden_states": text,
        "fps": FRAMES_PER_SECOND if x.shape[2] > 1 else None,
        "padding_mask": x.new_zeros(1, 1, *x.shape[3:]),
        "return_dict": False,
    }
    if frames is None:
        output: Tensor = network(hidden_states=x, timestep=time, **rest)[0]
        return output
    marks = condition["given"][:, None, :, None, None]
    given, known = marks.to(x.dtype), marks.to(time.dtype)
    state = given * frames + (1 - given) * x
    times = time[:, None, None, None, None]
    each = known * GIVEN_TIME + (1 - known) * times  # in the time's own precision
    mask = given.expand(-1, 1, *x.shape[2:])
    output = network(hidden_states=state, timestep=each, condition_mask=mask, **rest)[0]
    ending = (x - frames) / times.clamp_min(GIVEN_TIME)
    return given * ending + (1 - given) * output


def example(config: Mapping[str, Any], size: int, rng: torch.Generator) -> tuple[Tensor, Condition]:
    """Return two frames of 4 x 4 latents and eight tokens of text; for video to world, the first frame is given."""
    given = config["in_channels"] > config["out_channels"]
    x = torch.randn(size, config["out_channels"], 2, 4, 4, generator=rng)
    condition = {"text": torch.randn(size, 8, config["text_embed_dim"], generator=rng)}
    if given:
        condition |= {
            "frames": torch.randn(x.shape, generator=rng),
            "given": torch.tensor([[1.0, 0.0]] * size),
        }
    return x, condition


def load_codec(folder: Path) -> T5VideoCodec:
    """Return the codec of the pipeline in ``folder``."""
    return T5VideoCodec(LAYOUT, folder, TEXT_LENGTH)


def _without_torchvision() -> None:
    """Provide the one torchvision function of diffusers' module (it resizes the padding mask) if torchvision, which
    diffusers does not require, is not installed.
    """
    from diffusers.models.transformers import transformer_cosmos

    if hasattr(transformer_cosmos, "transforms"):
        return

    def resize(image: Tensor, size: list[int], interpolation: str) -> Tensor:
        return nnf.interpolate(image, size=size, mode=interpolation)

    transformer_cosmos.transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
    )

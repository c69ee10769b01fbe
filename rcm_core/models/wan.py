"""Wan2.1 text-to-video (and ``mini``, its miniature) through diffusers' unmodified WanTransformer3DModel.

Rectified flow: the network predicts ``eps - x0`` at flow time tau, given as ``1000 tau``. A pipeline whose VAE is
``PixelSpace`` (mini) works on pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.errors import InputError
from rcm_core.pipelines.check import check_pipeline
from rcm_core.pipelines.convert import Raw
from rcm_core.pipelines.folder import Encoder, Layout, empty_transformer, load_transformer, read_part
from rcm_core.pipelines.text_encoder import T5VideoCodec
from rcm_core.protocols import Condition, Parameterisation, Tokens

blocks = ("WanTransformerBlock",)
network_class = "WanTransformer3DModel"
time_layer = "condition_embedder.time_embedder.linear_2"
last_layer = "proj_out"
time_features = "condition_embedder.timesteps_proj"
time_embedder = "condition_embedder.time_embedder"
tokens = Tokens("blocks.0", "proj_out", {"attn1": "none"}, rope="rope", rope_dim=1)
TEXT_LENGTH = 512  # Wan's own; a tokenizer with a smaller model_max_length (mini) sets a smaller one
LAYOUT = Layout(
    "wan",
    network_class,
    ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"),
    (("diffusers", "AutoencoderKLWan"), ("rcm_core.pixels", "PixelSpace")),
    (Encoder("text_encoder", "UMT5EncoderModel", "text_dim"),),
)

RAW = Raw(
    (
        ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
        ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
        ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
        ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
        ("time_projection.1.", "condition_embedder.time_proj."),
        ("head.modulation", "scale_shift_table"),
        ("head.head.", "proj_out."),
        (".modulation", ".scale_shift_table"),
        (".self_attn.", ".attn1."),
        (".cross_attn.", ".attn2."),
        *((f".{part}.", f".to_{part}.") for part in "qkv"),
        (".o.", ".to_out.0."),
        (".ffn.0.", ".ffn.net.0.proj."),
        (".ffn.2.", ".ffn.net.2."),
        (".norm3.", ".norm2."),  # the only block norm with weights; diffusers counts in the order of use
    ),
    ("freqs", "_extra_state"),
)


def check_folder(folder: Path) -> None:
    """Raise InputError unless ``folder`` is a complete Wan2.1 pipeline; reads headers only."""
    second = read_part(folder, "model_index.json").get("transformer_2")
    if isinstance(second, list) and any(second):
        raise InputError(
            f"{folder} has a second transformer (Wan2.2); family wan has one: give a Wan2.1 pipeline"
        )
    check_pipeline(LAYOUT, folder)


def load_network(folder: Path) -> nn.Module:
    """Return the transformer in ``folder/transformer``, float32, in eval mode; InputError unless complete Wan."""
    return load_transformer(LAYOUT, folder)


def empty_network(folder: Path) -> nn.Module:
    """Return the same network without weights: parameters on the meta device."""
    return empty_transformer(LAYOUT, folder)


def parameterisation(folder: Path) -> Parameterisation:  # noqa: ARG001 - every Wan pipeline has the same one
    """Return rectified flow with network time 1000 tau (E7, E8)."""
    return RectifiedFlow(time_scale=1000.0)


def call(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Network output for states ``x`` [B, C, T, H, W], times [B] and ``condition["text"]`` [B, L, D]."""
    output: Tensor = network(
        hidden_states=x, timestep=time, encoder_hidden_states=condition["text"], return_dict=False
    )[0]
    return output


def example(config: Mapping[str, Any], size: int, rng: torch.Generator) -> tuple[Tensor, Condition]:
    """Return two frames of one patch and eight tokens of text."""
    patch = config["patch_size"]
    x = torch.randn(size, config["in_channels"], *(2 * side for side in patch), generator=rng)
    return x, {"text": torch.randn(size, 8, config["text_dim"], generator=rng)}


def load_codec(folder: Path) -> T5VideoCodec:
    """Return the codec of the pipeline in ``folder``."""
    return T5VideoCodec(LAYOUT, folder, TEXT_LENGTH, clean)


def clean(text: str) -> str:
    """Clean ``text`` like diffusers' WanPipeline, after the original Wan: ftfy, HTML entities, white space."""
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    cleaned: str = prompt_clean(text)
    return cleaned

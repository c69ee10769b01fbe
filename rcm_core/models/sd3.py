"""Stable Diffusion 3 Medium through diffusers' unmodified SD3Transformer2DModel.

Rectified flow at time 1000 tau. States are [B, C, 1, H, W]: images have one frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.errors import InputError
from rcm_core.pipelines.check import check_pipeline
from rcm_core.pipelines.folder import (
    Encoder,
    Layout,
    empty_transformer,
    load_transformer,
    meta_network,
    network_config,
    read_part,
)
from rcm_core.pipelines.quiet import without_bars
from rcm_core.pipelines.vae import ImageLatents
from rcm_core.protocols import Condition, Parameterisation, Tokens

blocks = ("JointTransformerBlock",)
network_class = "SD3Transformer2DModel"
time_layer = "time_text_embed.timestep_embedder.linear_2"
last_layer = "proj_out"
time_features = "time_text_embed.time_proj"
time_embedder = "time_text_embed.timestep_embedder"
tokens = Tokens("transformer_blocks.0", "proj_out", {"attn": "behind", "attn2": "none"})
T5_LENGTH = 256
CLIP_WIDTH = 512
"""Projection width of a CLIP whose configuration does not have it (transformers' default)."""
LAYOUT = Layout(
    "sd3",
    network_class,
    ("scheduler", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "transformer", "vae"),
    (("diffusers", "AutoencoderKL"),),
    (
        Encoder("text_encoder", "CLIPTextModelWithProjection"),
        Encoder("text_encoder_2", "CLIPTextModelWithProjection"),
        Encoder("text_encoder_3", "T5EncoderModel", "joint_attention_dim"),
    ),
)


def check_folder(folder: Path) -> None:
    """Raise InputError unless ``folder`` has a complete Stable Diffusion 3 pipeline (T5 optional); reads headers."""
    config = check_pipeline(LAYOUT, folder)
    parts = [f"{encoder.part}/config.json" for encoder in LAYOUT.encoders[:2]]
    widths = [read_part(folder, part).get("projection_dim", CLIP_WIDTH) for part in parts]
    if sum(widths) != config.get("pooled_projection_dim"):
        raise InputError(
            f"{folder} has CLIP encoders that project to {widths[0]} and {widths[1]}, but its network takes"
            f" {config.get('pooled_projection_dim')} together (pooled_projection_dim); put the pipeline's own there"
        )


def load_network(folder: Path) -> nn.Module:
    """Return the transformer in ``folder/transformer``, float32, in eval mode; InputError unless complete SD3."""
    return load_transformer(LAYOUT, folder)


def empty_network(folder: Path) -> nn.Module:
    """Return the same network without weights: parameters on the meta device."""
    return empty_transformer(LAYOUT, folder)


def parameterisation(folder: Path) -> Parameterisation:  # noqa: ARG001 - every SD3 pipeline has the same one
    """Return rectified flow with network time 1000 tau (E7, E8)."""
    return RectifiedFlow(time_scale=1000.0)


def call(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Network output for states ``x`` [B, C, 1, H, W], times [B], ``condition["text"]`` [B, L, D] and ``"pooled"``
    [B, P].
    """
    output: Tensor = network(
        hidden_states=x[:, :, 0],
        timestep=time,
        encoder_hidden_states=condition["text"],
        pooled_projections=condition["pooled"],
        return_dict=False,
    )[0]
    return output[:, :, None]


class SD3Codec(ImageLatents):
    """Two CLIP encoders, T5 if it is there, and the VAE; text goes through diffusers' own pipeline."""

    readers = ("pipeline",)

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        super().__init__(LAYOUT, folder)
        self.numbers = [n for n in ("", "_2", "_3") if (folder / f"text_encoder{n}").is_dir()]
        self.tokenizers = {
            f"tokenizer{n}": AutoTokenizer.from_pretrained(folder / f"tokenizer{n}", local_files_only=True)
            for n in self.numbers
        }
        self.t5_length = T5_LENGTH
        if "_3" in self.numbers:
            self.t5_length = min(T5_LENGTH, self.tokenizers["tokenizer_3"].model_max_length)
        self.length = self.tokenizers["tokenizer"].model_max_length + self.t5_length

    @cached_property
    def pipeline(self) -> Any:
        """diffusers' pipeline with only the parts that encode text."""
        from diffusers import StableDiffusion3Pipeline
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        parts: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None, **self.tokenizers}
        with without_bars():
            for n in self.numbers:
                kind = T5EncoderModel if n == "_3" else CLIPTextModelWithProjection
                encoder = kind.from_pretrained(
                    self.folder / f"text_encoder{n}", local_files_only=True, dtype=torch.float32
                )
                parts[f"text_encoder{n}"] = encoder.eval().to(self.device)
        # the pipeline reads only its text width, and only without T5
        network = meta_network(network_class, network_config(LAYOUT, self.folder))
        return StableDiffusion3Pipeline(network, None, None, **parts)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Return ``{"text": [B, L, D], "pooled": [B, P]}``."""
        text, _, pooled, _ = self.pipeline.encode_prompt(
            list(texts), None, None, self.device, do_classifier_free_guidance=False,
            max_sequence_length=self.t5_length,
        )  # fmt: skip
        return {"text": text.float().cpu(), "pooled": pooled.float().cpu()}


def example(config: Mapping[str, Any], size: int, rng: torch.Generator) -> tuple[Tensor, Condition]:
    """Return images of 8 x 8 latents and eight tokens of text."""
    x = torch.randn(size, config["in_channels"], 1, 8, 8, generator=rng)
    widths = config["joint_attention_dim"], config["pooled_projection_dim"]
    text, pooled = torch.randn(size, 8, widths[0], generator=rng), torch.randn(size, widths[1], generator=rng)
    return x, {"text": text, "pooled": pooled}


def load_codec(folder: Path) -> SD3Codec:
    """Return the codec of the pipeline in ``folder``."""
    return SD3Codec(folder)

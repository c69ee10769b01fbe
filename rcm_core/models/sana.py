"""SANA, and the teachers of SANA-Sprint, through diffusers' unmodified SanaTransformer2DModel (linear attention).

Rectified flow. The time is 1000 tau times the network's timestep_scale; networks that embed the guidance scale
(SANA-Sprint's students) take tau itself. States are [B, C, 1, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.pipelines.check import check_pipeline
from rcm_core.pipelines.folder import Encoder, Layout, empty_transformer, load_transformer, network_config
from rcm_core.pipelines.quiet import without_bars
from rcm_core.pipelines.vae import ImageLatents
from rcm_core.protocols import Condition, Parameterisation

blocks = ("SanaTransformerBlock",)
network_class = "SanaTransformer2DModel"
time_layer = "time_embed.emb.timestep_embedder.linear_2"
last_layer = "proj_out"
time_features = "time_embed.emb.time_proj"
time_embedder = "time_embed.emb.timestep_embedder"
tokens = None  # linear attention sums over tokens, and its convolutions see their neighbours
TEXT_LENGTH = 300
SPRINT_GUIDANCE = 4.5
"""Guidance scale for a network that embeds it if the condition has none: SanaSprintPipeline's default."""
LAYOUT = Layout(
    "sana",
    network_class,
    ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"),
    (("diffusers", "AutoencoderDC"),),
    (Encoder("text_encoder", "Gemma2Model", "caption_channels"),),
)


def check_folder(folder: Path) -> None:
    """Raise InputError unless ``folder`` is a complete SANA pipeline; reads headers only."""
    check_pipeline(LAYOUT, folder)


def load_network(folder: Path) -> nn.Module:
    """Return the transformer in ``folder/transformer``, float32, in eval mode; InputError unless complete SANA."""
    return load_transformer(LAYOUT, folder)


def empty_network(folder: Path) -> nn.Module:
    """Return the same network without weights: parameters on the meta device."""
    return empty_transformer(LAYOUT, folder)


def parameterisation(folder: Path) -> Parameterisation:
    """Return rectified flow (E7, E8) at the network's own time."""
    config = network_config(LAYOUT, folder)
    embedded = config.get("guidance_embeds", False)
    return RectifiedFlow(time_scale=1.0 if embedded else 1000.0 * config.get("timestep_scale", 1.0))


def call(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Network output for states ``x`` [B, C, 1, H, W], times [B], ``condition["text"]`` [B, L, D] and its ``"mask"``
    [B, L]; if the network embeds the guidance scale, for that of ``condition["guidance"]`` [B].
    """
    config: Any = network.config
    guidance = None
    if config.guidance_embeds:
        scale = condition.get("guidance", torch.full_like(time, SPRINT_GUIDANCE))
        guidance = config.guidance_embeds_scale * scale.to(time.dtype)
    output: Tensor = network(
        hidden_states=x[:, :, 0],
        timestep=time,
        encoder_hidden_states=condition["text"],
        encoder_attention_mask=condition["mask"],
        guidance=guidance,
        return_dict=False,
    )[0]
    return output[:, : x.shape[1], None]  # a learned variance, if there is one, stands behind


class SanaCodec(ImageLatents):
    """Gemma 2 as the text encoder, and the VAE; text goes through diffusers' own pipeline."""

    readers = ("pipeline",)

    def __init__(self, folder: Path) -> None:
        from diffusers import SanaPipeline
        from transformers import AutoTokenizer

        super().__init__(LAYOUT, folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self.length = min(TEXT_LENGTH, self.tokenizer.model_max_length)
        asked = signature(SanaPipeline.__call__).parameters["complex_human_instruction"]
        self.instruction: list[str] = asked.default

    @cached_property
    def pipeline(self) -> Any:
        """diffusers' pipeline with only the parts that encode text."""
        from diffusers import SanaPipeline
        from transformers import Gemma2Model

        with without_bars():
            encoder = Gemma2Model.from_pretrained(
                self.folder / "text_encoder", local_files_only=True, dtype=torch.float32
            )
        return SanaPipeline(self.tokenizer, encoder.eval().to(self.device), None, None, None)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Return ``{"text": [B, L, D], "mask": [B, L]}`` of negative prompts, encoded as by SanaPipeline."""
        return self._encode(texts, None)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Return the same for prompts, each with the instruction of SanaPipeline as its prefix (arXiv 2410.10629,
        section 3.1).
        """
        return self._encode(prompts, self.instruction)

    def _encode(self, texts: Sequence[str], instruction: list[str] | None) -> Condition:
        text, mask, _, _ = self.pipeline.encode_prompt(
            list(texts),
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.length,
            complex_human_instruction=instruction,
        )
        return {"text": text.float().cpu(), "mask": mask.float().cpu()}


def example(config: Mapping[str, Any], size: int, rng: torch.Generator) -> tuple[Tensor, Condition]:
    """Return images of 8 x 8 latents and eight tokens of text; the last token is padding."""
    x = torch.randn(size, config["in_channels"], 1, 8, 8, generator=rng)
    mask = torch.ones(size, 8)
    mask[:, -1] = 0
    return x, {"text": torch.randn(size, 8, config["caption_channels"], generator=rng), "mask": mask}


def load_codec(folder: Path) -> SanaCodec:
    """Return the codec of the pipeline in ``folder``."""
    return SanaCodec(folder)

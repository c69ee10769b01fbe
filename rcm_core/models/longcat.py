"""LongCat-Image through diffusers' unmodified LongCatImageTransformer2DModel.

Rectified flow at time tau (the module multiplies it by 1000). States are [B, C, 1, H, W]; the module takes tokens of
2 x 2 latents and their places, which are made here. The renormalisation of guided velocities that diffusers' pipeline
offers is not a part of the teacher.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.pipelines.check import check_pipeline
from rcm_core.pipelines.folder import Encoder, Layout, empty_transformer, load_transformer
from rcm_core.pipelines.quiet import without_bars
from rcm_core.pipelines.vae import ImageLatents
from rcm_core.protocols import Condition, Parameterisation, Tokens

blocks = ("LongCatImageTransformerBlock", "LongCatImageSingleTransformerBlock")
network_class = "LongCatImageTransformer2DModel"
time_layer = "time_embed.timestep_embedder.linear_2"
last_layer = "proj_out"
time_features = "time_embed.time_proj"
time_embedder = "time_embed.timestep_embedder"
tokens = Tokens(
    "x_embedder",
    "proj_out",
    {"attn": "before"},
    rope="pos_embed",
    rope_covers_text=True,
    tokens_are_output_of_entry=True,
)
PATCH = 2
SCALE = 1000  # factor of the time inside the module
LAYOUT = Layout(
    "longcat",
    network_class,
    ("scheduler", "text_encoder", "tokenizer", "transformer", "vae"),
    (("diffusers", "AutoencoderKL"),),
    (Encoder("text_encoder", "Qwen2_5_VLForConditionalGeneration", "joint_attention_dim"),),
)


def check_folder(folder: Path) -> None:
    """Raise InputError unless ``folder`` is a complete LongCat-Image pipeline; reads headers only."""
    check_pipeline(LAYOUT, folder)


def load_network(folder: Path) -> nn.Module:
    """Return the transformer in ``folder/transformer``, float32, in eval mode; InputError unless complete LongCat."""
    return load_transformer(LAYOUT, folder)


def empty_network(folder: Path) -> nn.Module:
    """Return the same network without weights: parameters on the meta device."""
    return empty_transformer(LAYOUT, folder)


def parameterisation(folder: Path) -> Parameterisation:  # noqa: ARG001 - every LongCat pipeline has the same one
    """Return rectified flow with network time tau (E7, E8)."""
    return RectifiedFlow(time_scale=1.0)


def call(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Network output for states ``x`` [B, C, 1, H, W], H and W even, times [B] and ``condition["text"]`` [B, L, D]."""
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import prepare_pos_ids

    text = condition["text"]
    length, (height, width) = text.shape[1], (side // PATCH for side in x.shape[3:])
    places = {
        "txt_ids": prepare_pos_ids(modality_id=0, type="text", num_token=length),
        "img_ids": prepare_pos_ids(
            modality_id=1, type="image", start=(length, length), height=height, width=width
        ),
    }

    def exactly(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:  # noqa: ARG001
        return (SCALE * time, *given[1:])  # the module would round it to the precision of its states

    handle = network.get_submodule("time_embed").register_forward_pre_hook(exactly)
    try:
        tokens: Tensor = network(
            hidden_states=pack(x[:, :, 0]),
            timestep=time,
            encoder_hidden_states=text,
            return_dict=False,
            **{name: value.to(x.device) for name, value in places.items()},
        )[0]
    finally:
        handle.remove()
    return unpack(tokens, height, width)[:, :, None]


def pack(latents: Tensor) -> Tensor:
    """Turn latents [B, C, 2 h, 2 w] into tokens [B, h w, 4 C]."""
    return nn.functional.pixel_unshuffle(latents, PATCH).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Invert ``pack`` for h = ``height`` and w = ``width``."""
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).reshape(len(tokens), -1, height, width), PATCH)


class LongCatCodec(ImageLatents):
    """Qwen2.5-VL as the text encoder, and the VAE; text goes through diffusers' own pipeline, which spells out what
    stands in quotation marks.
    """

    readers = ("pipeline",)

    def __init__(self, folder: Path) -> None:
        from diffusers import LongCatImagePipeline
        from transformers import AutoTokenizer

        super().__init__(LAYOUT, folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        longest = LongCatImagePipeline(None, None, None, None, None, None).tokenizer_max_length
        self.length = min(longest, self.tokenizer.model_max_length)

    @cached_property
    def pipeline(self) -> Any:
        """diffusers' pipeline with only the parts that encode text."""
        from diffusers import LongCatImagePipeline
        from transformers import Qwen2_5_VLForConditionalGeneration

        with without_bars():
            encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                self.folder / "text_encoder", local_files_only=True, dtype=torch.float32
            )
        parts = (None, None, encoder.eval().to(self.device), self.tokenizer, None, None)
        pipeline = LongCatImagePipeline(*parts)
        pipeline.tokenizer_max_length = self.length
        return pipeline

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Return ``{"text": [B, L, D]}``."""
        text, _ = self.pipeline.encode_prompt(list(texts))
        return {"text": text.float().cpu()}


def example(config: Mapping[str, Any], size: int, rng: torch.Generator) -> tuple[Tensor, Condition]:
    """Return images of 8 x 8 latents and eight tokens of text."""
    x = torch.randn(size, config["in_channels"] // PATCH**2, 1, 8, 8, generator=rng)
    return x, {"text": torch.randn(size, 8, config["joint_attention_dim"], generator=rng)}


def load_codec(folder: Path) -> LongCatCodec:
    """Return the codec of the pipeline in ``folder``."""
    return LongCatCodec(folder)

"""``mini``: a miniature Wan pipeline in diffusers layout, built from scratch; the teacher stage trains it.

The text encoder is a small UMT5 encoder with random weights, an injective enough map from words to vectors for a
closed vocabulary, or one that was taught to read its benchmark's prompts (``mini_text_encoder``); the same module,
tokenizer and files that a Wan2.1 folder has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rcm_core.errors import InputError
from rcm_core.pipelines.mini_text_encoder import Meanings, teach
from rcm_core.pipelines.quiet import without_bars


def build_network(
    channels: int, heads: int, head_dim: int, layers: int, ffn_dim: int, text_dim: int, patch: int = 2
) -> nn.Module:
    """Build an untrained diffusers WanTransformer3DModel (1.2 M parameters at 4 x 32, 4 layers); a token is
    patch x patch pixels of a frame.
    """
    from diffusers import WanTransformer3DModel

    network: nn.Module = WanTransformer3DModel(
        patch_size=(1, patch, patch),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=channels,
        out_channels=channels,
        text_dim=text_dim,
        freq_dim=128,
        ffn_dim=ffn_dim,
        num_layers=layers,
        rope_max_seq_len=64,
    )
    return network


def build_tokenizer(prompts: Sequence[str], length: int) -> Any:
    """Build a lower-casing word tokenizer over the words of ``prompts``; other words are ``<unk>``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = sorted({word for prompt in prompts for word in prompt.lower().split()})
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
    )


def build_text_encoder(vocabulary: int, text_dim: int, heads: int = 4, order: float = 1.0) -> nn.Module:
    """Build a frozen two-layer UMT5 encoder with weights drawn from the current torch seed.

    Its relative position biases are multiplied by ``order``. As drawn they hardly matter and a prompt is close to
    a bag of words; at 32 a head looks at words at distances of its own, so that "a red two and a blue six" differs
    from "a blue two and a red six".
    """
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary, d_model=text_dim, d_kv=16, d_ff=2 * text_dim, num_layers=2, num_heads=heads,
        dropout_rate=0.0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    encoder: nn.Module = UMT5EncoderModel(config).eval().requires_grad_(False)
    for name, weights in encoder.named_parameters():
        if name.endswith("relative_attention_bias.weight"):
            weights.mul_(order)
    return encoder


def save_pipeline(
    folder: Path,
    shape: Sequence[int],
    prompts: Sequence[str],
    settings: Any,
    shift: float,
    seed: int,
    meanings: Meanings | None = None,
) -> None:
    """Write an untrained pixel-space Wan pipeline into ``folder`` (PixelSpace in the VAE's place).

    ``settings`` is ``config.mini_teacher.MiniTraining``; weights are a function of ``seed``. The text encoder stays
    random, or has learned ``meanings`` of ``prompts`` (``settings.text_steps``).
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    from rcm_core.pixels import PixelSpace

    tokenizer = build_tokenizer(prompts, settings.text_length)
    longest = max(prompts, key=lambda prompt: len(tokenizer(prompt).input_ids))
    tokens = len(tokenizer(longest).input_ids)
    if tokens > settings.text_length:
        raise InputError(
            f"prompt {longest!r} has {tokens} tokens, but teacher.mini.text_length = {settings.text_length} would cut"
            f" it; set it to {tokens} or more"
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_text_encoder(
            len(tokenizer), settings.text_dim, settings.text_heads, settings.text_order
        )
        network = build_network(
            shape[0], settings.heads, settings.head_dim, settings.layers, settings.ffn_dim, settings.text_dim,
            settings.patch,
        )  # fmt: skip
    if settings.text_steps:
        if meanings is None:
            raise InputError(
                "teacher.mini.text_steps > 0, but this benchmark defines no meanings of words; set it to 0"
            )
        teach(encoder, tokenizer, prompts, meanings, settings.text_steps)
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=PixelSpace(shape[0], (0.0,) * shape[0], (1.0,) * shape[0]),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        transformer=network,
    )
    with without_bars():
        pipeline.save_pretrained(folder, safe_serialization=True)

"""Codec of a T5-like text encoder and a video VAE, for Wan and Cosmos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_core.pipelines.folder import Layout
from rcm_core.pipelines.quiet import without_bars
from rcm_core.pipelines.vae import VideoLatents
from rcm_core.protocols import Condition


class T5VideoCodec(VideoLatents):
    """Tokenizer, text encoder and VAE of a pipeline folder."""

    readers = ("encoder",)

    def __init__(self, layout: Layout, folder: Path, longest: int, clean: Callable[[str], str] = str) -> None:
        """Use the layout's encoder. Prompts have at most ``longest`` tokens, fewer if the tokenizer's limit is.
        ``clean`` is the text cleaning of the family's diffusers pipeline.
        """
        import transformers

        super().__init__(layout, folder)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder / "tokenizer", local_files_only=True
        )
        self.kind = getattr(transformers, layout.encoders[0].kind)
        self.clean = clean
        self.length = min(longest, self.tokenizer.model_max_length)

    @cached_property
    def encoder(self) -> Any:
        """Text encoder."""
        with without_bars():
            encoder = self.kind.from_pretrained(
                self.folder / "text_encoder", local_files_only=True, dtype=torch.float32
            )
        return encoder.eval().to(self.device)

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Return ``{"text": [B, L, D]}``: last hidden states, exactly zero behind each prompt (as in diffusers)."""
        tokens = self.tokenizer(
            [self.clean(text) for text in texts], padding="max_length", max_length=self.length, truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        tokens = tokens.to(self.device)
        hidden: Tensor = self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return {"text": (hidden * tokens.attention_mask.unsqueeze(-1)).cpu()}

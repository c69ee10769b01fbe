"""What T5-like text encoders have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


def masked_states(tokenizer: Any, encoder: Any, prompts: Sequence[str], length: int) -> Tensor:
    """``[B, length, D]``: the encoder's last hidden states, exactly zero behind each prompt's end."""
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )
    hidden: Tensor = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    mask: Tensor = tokens.attention_mask
    return hidden * mask.unsqueeze(-1)

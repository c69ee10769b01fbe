"""Activation checkpointing: the backward pass recomputes the activations of blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

SAVED = (
    "mm", "addmm", "bmm", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
)  # fmt: skip
"""Operators whose results "matmuls" saves."""
Forward = Callable[..., Any]


def checkpoint_blocks(
    blocks: Sequence[nn.Module], kind: str, wrap: Callable[[Forward], Forward] = lambda forward: forward
) -> None:
    """Apply activation checkpointing to ``blocks``: "blocks" recomputes everything; "matmuls" saves the outputs of
    matrix products and attention; "none" does nothing. ``wrap(forward)`` is what backward recomputes.
    """
    if kind == "none":
        return
    save = {getattr(torch.ops.aten, name).default for name in SAVED if kind == "matmuls"}

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:  # noqa: ARG001
        return CheckpointPolicy.MUST_SAVE if operator in save else CheckpointPolicy.PREFER_RECOMPUTE

    def run(plain: Forward, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        plain = wrap(plain)
        if not save:
            return checkpoint(plain, *args, use_reentrant=False, **kwargs)
        choose = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(plain, *args, use_reentrant=False, context_fn=choose, **kwargs)

    for block in blocks:
        block.forward = partial(run, block.forward)  # type: ignore[method-assign]

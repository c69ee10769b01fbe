"""A tiny CLIP in transformers layout, trained to distinguish four colours."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from rcm_core.pipelines.mini import build_tokenizer
from rcm_core.pipelines.quiet import without_bars

COLOURS = {
    "red": (1.0, 0.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "blue": (0.0, 0.0, 1.0),
    "white": (1.0, 1.0, 1.0),
}
LENGTH = 8
PREPARATION = {
    "do_resize": True, "size": {"shortest_edge": 16}, "do_center_crop": True,
    "crop_size": {"height": 16, "width": 16}, "do_normalize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5], "image_processor_type": "CLIPImageProcessor",
}  # fmt: skip


def flat(colour: str, count: int, frames: int = 1, height: int = 20, width: int = 24) -> torch.Tensor:
    """Return pixels [count, 3, frames, height, width] of one colour with a little noise, in [0, 1]."""
    rng = torch.Generator().manual_seed(sum(map(ord, colour)))
    base = 0.2 + 0.6 * torch.tensor(COLOURS[colour]).view(1, 3, 1, 1, 1)
    return (base + 0.1 * torch.rand(count, 3, frames, height, width, generator=rng)).clamp(0, 1)


def build_clip(folder: Path, steps: int = 60) -> Path:
    """Write config, weights, tokenizer and preprocessor to ``folder``, the same at every call."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    tokenizer = build_tokenizer([f"a {colour} picture" for colour in COLOURS], LENGTH)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextConfig(
        **sizes,
        vocab_size=len(tokenizer),
        max_position_embeddings=LENGTH,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(**sizes, image_size=16, patch_size=8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
        )
        _teach(model, tokenizer, steps)
    with without_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPARATION))
    return folder


def _teach(model: torch.nn.Module, tokenizer: object, steps: int) -> None:
    """Train by contrastive learning on uniformly coloured pictures, with prompts that name the colour."""
    texts = tokenizer(  # type: ignore[operator]
        [f"a {colour} picture" for colour in COLOURS],
        padding="max_length",
        max_length=LENGTH,
        return_tensors="pt",
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        pictures = torch.cat([flat(colour, 4, 1, 16, 16)[:, :, 0] for colour in COLOURS])
        images = model.get_image_features((pictures - 0.5) / 0.5).pooler_output  # type: ignore[operator]
        words = model.get_text_features(texts.input_ids, texts.attention_mask).pooler_output  # type: ignore[operator]
        logits = 10 * F.normalize(images, dim=-1) @ F.normalize(words, dim=-1).T
        loss = F.cross_entropy(logits, torch.arange(4).repeat_interleave(4))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()

"""Sample grids: small pictures of each run, and one picture composed of all runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from rcm_core.storage.files import atomic

COLUMNS = 10
SIDE = 32
"""Minimum size of a sample on the page, in pixels."""
GAP, LABELS, TEXT = 3, 170, 13


def save_grid(samples: Path, kinds: Sequence[str], place: Path) -> None:
    """Save a grid in original resolution: a row per sampler of ``samples`` whose name begins with one of ``kinds``.

    Rows are sorted by name. Each column has one prompt and the same noise.
    """
    prompts = json.loads((samples / "prompts.json").read_text())
    first = spread(prompts, COLUMNS)
    found = (p.stem for p in samples.glob("*.safetensors") if p.stem.startswith(tuple(kinds)))
    names = sorted(found, key=lambda name: (len(name), name))  # by number of steps
    rows = [load_file(samples / f"{name}.safetensors")["pixels"][first] for name in names]
    picture = np.concatenate([np.concatenate([tile(x) for x in row], axis=1) for row in rows], axis=0)
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic(place) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG", optimize=True)


def spread(prompts: Sequence[str], many: int) -> list[int]:
    """Return indices of ``many`` prompts, evenly spread with a drifting offset, because lists have regular patterns."""
    distinct = len(set(prompts))
    stride = max(1, distinct // many)
    return [i * stride + i % stride for i in range(min(many, distinct))]


def tile(pixels: Tensor) -> np.ndarray:
    """Return a sample [C, T, H, W] in [0, 1] as uint8 [H, W + 1, 3] with a white edge; for a clip, the middle frame."""
    frame = pixels[:, pixels.shape[1] // 2]
    colours = frame.expand(3, -1, -1) if len(frame) == 1 else frame[:3]
    bytes_ = (255 * colours.clamp(0, 1)).round().to(torch.uint8)
    return np.pad(bytes_.permute(1, 2, 0).numpy(), ((0, 0), (0, 1), (0, 0)), constant_values=255)


def composed_grid(rows: Sequence[tuple[str, Path, int, int]]) -> Image.Image:
    """Return a labelled picture. ``rows`` has labels, files of ``save_grid``, row indices and row counts."""
    strips = []
    for _, place, index, many in rows:
        with Image.open(place) as whole:
            height = whole.height // many
            strips.append(whole.crop((0, index * height, whole.width, (index + 1) * height)).convert("RGB"))
    scale = max(1, -(-SIDE // strips[0].height))
    height = strips[0].height * scale
    canvas = Image.new("RGB", (LABELS + strips[0].width * scale, len(rows) * (height + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for y, ((words, *_), strip) in enumerate(zip(rows, strips)):
        top = y * (height + GAP)
        draw.text((0, top + height // 2 - TEXT // 2), words, fill="black", font_size=TEXT)
        large = strip.resize((strip.width * scale, height), Image.Resampling.NEAREST)
        canvas.paste(large, (LABELS, top))
    return canvas

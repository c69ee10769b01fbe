"""Samples as files a person can open: PNG for images, GIF for clips, enlarged without smoothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.storage import atomic

TILE = 256
FRAME_MS = 150


def save_samples(pixels: Tensor, out: Path) -> None:
    """Writes ``pixels`` [N, C, T, H, W] in [0, 1] to ``out``: N tiles of at least 256 pixels, T frames.

    InputError if the suffix does not fit: .png for one frame, .gif for several.
    """
    frames = pixels.shape[2]
    fitting = ".png" if frames == 1 else ".gif"
    if out.suffix.lower() != fitting:
        raise InputError(f"--out {out}: the student makes {frames} frame(s) a sample; name a {fitting} file")
    images = [Image.fromarray(contact_sheet(pixels[:, :, t])) for t in range(frames)]
    with atomic(out) as temporary:
        if frames == 1:
            images[0].save(temporary, format="PNG")
        else:
            rest = images[1:]
            images[0].save(
                temporary, format="GIF", save_all=True, append_images=rest, duration=FRAME_MS, loop=0
            )


def contact_sheet(images: Tensor) -> np.ndarray:
    """``images`` [N, C, H, W] in [0, 1] as one picture [rows H', columns W'(, 3)] of bytes, nearly square."""
    number, channels, height, width = images.shape
    columns = math.ceil(math.sqrt(number))
    rows = math.ceil(number / columns)
    scale = max(1, math.ceil(TILE / max(height, width)))
    sheet = np.zeros((rows * height * scale, columns * width * scale, channels), dtype=np.uint8)
    levels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    for index, level in enumerate(levels):
        top, left = (index // columns) * height * scale, (index % columns) * width * scale
        tile = level.repeat(scale, 0).repeat(scale, 1)
        sheet[top : top + height * scale, left : left + width * scale] = tile
    return sheet[:, :, 0] if channels == 1 else sheet[:, :, :3]

"""Samples side by side: one row per prompt, one column per sampler, the same noise along a row."""

from __future__ import annotations

import base64
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.evaluation.report.finished_run import Run
from rcm_core.evaluation.report.formatting import escape

SMALLEST, LARGEST = 32, 192
"""Minimum and maximum side in pixels: smaller samples are enlarged without smoothing, larger ones are shrunk."""
FRAME_MILLISECONDS = 180


def grid(run: Run, rows: int) -> str:
    """Render a table of ``rows`` prompts, spread evenly over the sampled prompts."""
    distinct = list(dict.fromkeys(run.prompts))
    if rows > len(distinct):
        raise InputError(
            f"report.prompts = {rows}, but the run has samples of {len(distinct)} prompts; lower report.prompts"
        )
    shown = spread(distinct, rows)
    wide = " wide" if _is_wide(run) else ""
    head = "".join(f'<th scope="col" class="{_kind(s.key)}">{escape(s.name)}</th>' for s in run.samplers)
    body = "".join(_row(run, prompt) for prompt in shown)
    head = f'<thead><tr><th scope="col">Prompt</th>{head}</tr></thead>'
    return f'<table class="samples{wide}">{head}<tbody>{body}</tbody></table>'


def per_cell(run: Run) -> int:
    """Return the number of samples per prompt and sampler: as many as fit into five columns."""
    return 3 if _is_wide(run) else 4


def spread(prompts: list[str], rows: int) -> list[str]:
    """Return ``rows`` of ``prompts``, evenly spread; the offset drifts because prompt lists have regular patterns."""
    stride = max(1, len(prompts) // rows)
    return [prompts[i * stride + i % stride] for i in range(min(rows, len(prompts)))]


def _is_wide(run: Run) -> bool:
    height, width = run.samples["teacher"].shape[-2:]
    return width > height


def _row(run: Run, prompt: str) -> str:
    chosen = [i for i, p in enumerate(run.prompts) if p == prompt][: per_cell(run)]
    cells = []
    for sampler in run.samplers:
        tiles = "".join(
            f'<img src="{picture(run.samples[sampler.key][i])}" alt="{escape(f"{sampler.name}: {prompt}")}">'
            for i in chosen
        )
        cells.append(f'<td class="{_kind(sampler.key)}"><div class="tiles">{tiles}</div></td>')
    return f'<tr><th scope="row">{escape(prompt)}</th>{"".join(cells)}</tr>'


def _kind(key: str) -> str:
    return "student" if key.startswith("student") else "teacher" if key == "teacher" else "raw"


def picture(pixels: Tensor) -> str:
    """Encode ``[C, T, H, W]`` in [0, 1] as a data URI: a PNG for one frame, a looping GIF for several."""
    if pixels.shape[0] not in (1, 3):
        raise InputError(
            f"samples have {pixels.shape[0]} channels, but a picture has 1 (grey) or 3 (RGB); decode them to RGB"
        )
    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0).squeeze(-1).contiguous()
    frames = [_fit(Image.fromarray(frame.numpy())) for frame in values]
    stream = BytesIO()
    if len(frames) == 1:
        frames[0].save(stream, "PNG", optimize=True)
        return _uri("image/png", stream)
    frames[0].save(
        stream, "GIF", save_all=True, append_images=frames[1:], duration=FRAME_MILLISECONDS, loop=0
    )
    return _uri("image/gif", stream)


def _fit(image: Image.Image) -> Image.Image:
    factor = -(-SMALLEST // min(image.size))
    if factor > 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((LARGEST, LARGEST))
    return image


def _uri(kind: str, stream: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"

"""Save samples for viewing: PNG for images, GIF or MP4 for clips, enlarged without smoothing."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from infra.commands.outputs import MARK, replaced_samples
from rcm_core.errors import InputError
from rcm_core.storage.files import atomic

TILE = 256
FRAME_MS = 150
FRAMES_PER_SECOND = 16


def save_samples(pixels: Tensor, out: Path) -> None:
    """Write ``pixels`` [N, C, T, H, W] in [0, 1] to ``out``: N tiles of at least 256 pixels, T frames.

    Raises InputError for a wrong suffix: .png is for one frame, .gif and .mp4 for several.
    """
    frames = pixels.shape[2]
    refuse_suffix(out, frames)
    images = [Image.fromarray(contact_sheet(pixels[:, :, t])) for t in range(frames)]
    if out.suffix.lower() == ".mp4":
        save_video(images, out)
        return
    with atomic(out) as temporary:
        if frames == 1:
            images[0].save(temporary, format="PNG", pnginfo=_mark())
        else:
            rest = images[1:]
            images[0].save(
                temporary,
                format="GIF",
                save_all=True,
                append_images=rest,
                duration=FRAME_MS,
                loop=0,
                comment=MARK.encode(),
            )


def refuse_suffix(out: Path, frames: int) -> None:
    """Raise InputError unless samples of ``frames`` frames can be saved as ``out``."""
    fitting = (".png",) if frames == 1 else (".gif", ".mp4")
    if out.suffix.lower() not in fitting:
        raise InputError(
            f"--out {out}: the student generates {frames} frame(s) per sample; name a {' or '.join(fitting)} file"
        )


def save_each(parts: Iterable[Tensor], out: Path) -> int:
    """Write one file per sample of ``parts`` ([n, C, T, H, W] each) to the folder ``out``; return their number.

    Images are PNG, clips MP4.
    """
    count = 0
    with replaced_samples(out) as folder:
        for pixels in parts:
            for sample in pixels.split(1):
                suffix = ".png" if sample.shape[2] == 1 else ".mp4"
                save_samples(sample, folder / f"{count:05d}{suffix}")
                count += 1
    return count


def refuse_nonfinite(pixels: Tensor, model: Path) -> Tensor:
    """Return ``pixels``; InputError if they are not finite."""
    if not bool(pixels.isfinite().all()):
        raise InputError(
            f"samples of {model} are not finite, so its weights are damaged; publish it again with `dvc repro publish`"
        )
    return pixels


def _mark() -> PngInfo:
    info = PngInfo()
    info.add_text("Software", MARK)
    return info


def save_video(images: list[Image.Image], out: Path) -> None:
    """Write H.264 at 16 frames per second; InputError if imageio-ffmpeg is not installed."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise InputError(
            f"{out} needs imageio-ffmpeg, which is not installed; pip install 'rcm-distill[video]', or name a .gif file"
        ) from error
    frames = np.stack([np.asarray(image.convert("RGB")) for image in images])
    even = [(0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)]  # yuv420 requires even sides
    frames = np.pad(frames, even, mode="edge")
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(FRAMES_PER_SECOND), "-i", "-"]
    made = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-metadata", f"comment={MARK}", "-f", "mp4"]
    with atomic(out) as temporary:
        command = [get_ffmpeg_exe(), "-y", "-loglevel", "error", *given, *made, str(temporary)]
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
        if done.returncode:
            raise InputError(f"{out} could not be written: {' '.join(done.stderr.decode().split())}")


def contact_sheet(images: Tensor) -> np.ndarray:
    """Return ``images`` [N, C, H, W] in [0, 1] as one nearly square picture [rows H', columns W'(, 3)] of bytes."""
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

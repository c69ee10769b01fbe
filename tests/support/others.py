"""External data for tests: pictures, clips and tars, and a teacher of any family for them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import families
import numpy as np
import torch
import yaml
from PIL import Image
from tiny import tiny_values
from workspaces import change

from infra.commands.save_samples import save_video
from infra.executors.local import LocalExecutor
from rcm_core.config.load import load_params
from rcm_core.stages import prompts, teacher

SPLITS = {"train": "the digit 1\nthe digit 2", "validation": "the digit 3", "test": "the digit 4"}


def ready(workspace: Path, family: str) -> tuple[int, ...]:
    """Run the stages teacher and prompts for a tiny teacher of ``family``; return the shape of its latents."""
    shape = families.build(family, workspace / "given")
    values = tiny_values()
    values["teacher"] |= {"source": "given", "family": family, "shape": list(shape), "mini": None}
    for split, text in SPLITS.items():
        (workspace / f"{split}.txt").write_text(text)
        values["prompts"][split] = f"{split}.txt"
    (workspace / "params.yaml").write_text(yaml.safe_dump(change(values, {"trajectories.shard_size": 4})))
    params = load_params(workspace / "params.yaml")
    for stage in (teacher, prompts):
        stage.run(params, workspace, LocalExecutor(workspace))
    return shape


def levels(height: int, width: int, seed: int) -> np.ndarray:
    """Return smooth colours, bytes [H, W, 3], which lossy formats preserve."""
    y, x = np.mgrid[:height, :width]
    colours = [y / height, x / width, np.full_like(x, (seed % 7) / 7, dtype=float)]
    return (255 * np.roll(np.stack(colours, -1), seed, axis=-1)).astype(np.uint8)


def picture(path: Path, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Write an image file in the format of its suffix; return its pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = levels(height, width, seed)
    Image.fromarray(shown).save(path)
    return shown


def clip(path: Path, frames: int, height: int, width: int) -> list[int]:
    """Write a video of uniform grey frames that brighten, at 16 frames per second; return the grey levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    greys = [20 + 200 * i // frames for i in range(frames)]
    save_video([Image.new("RGB", (width, height), (g, g, g)) for g in greys], path)
    return greys


def pictures(folder: Path, count: int, height: int, width: int) -> list[np.ndarray]:
    """Write files of several formats and sizes with captions; files with odd numbers have the requested size."""
    kinds = (".png", ".jpg", ".webp")
    shown = []
    for i in range(count):
        larger = 1 if i % 2 else 2
        name = f"sub/{i:03d}" if i % 3 == 0 else f"{i:03d}"
        shown.append(picture(folder / f"{name}{kinds[i % 3]}", larger * height, larger * width + 2 * i, i))
        (folder / f"{name}.txt").write_text(f"picture number {i}\n")
    return shown


def stored(value: Any) -> bytes:
    """Return the bytes that torch.save writes for ``value``."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def tar(path: Path, members: Mapping[str, bytes]) -> None:
    """Write an archive with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def sample(number: int, shape: Sequence[int], text: Sequence[int] | None) -> dict[str, bytes]:
    """Return the members of one sample as NVlabs/rcm writes them: bfloat16, a key of nine digits."""
    rng = torch.Generator().manual_seed(number)
    key = f"{number:09d}"
    members = {f"{key}.latent.pt": stored(torch.randn(*shape, generator=rng).bfloat16())}
    if text is not None:
        members[f"{key}.embed.pt"] = stored(torch.randn(*text, generator=rng).bfloat16())
    return members | {f"{key}.prompt.txt": f"prompt number {number}".encode()}


def tars(folder: Path, shape: Sequence[int], text: Sequence[int] | None) -> None:
    """Write nine samples in two tars."""
    for shard, numbers in ((0, range(5)), (1, range(5, 9))):
        tar(
            folder / f"shard_{shard:06d}.tar",
            {k: v for number in numbers for k, v in sample(number, shape, text).items()},
        )

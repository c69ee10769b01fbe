"""A folder of images or videos with captions: matching files to captions, checking headers, reading pixels."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from rcm_core.data.prompts import (
    LARGEST_TEXT,
    LONGEST,
    TABLES,
    clean_text,
    decode_text,
    read_table,
    text_column,
)
from rcm_core.data.trajectory_store import Place, open_once
from rcm_core.errors import InputError, one_line

IMAGES = (".jpeg", ".jpg", ".png", ".webp")
VIDEOS = (".mkv", ".mov", ".mp4", ".webm")
TABLE = "metadata"
"""Stem of the table of captions, with the columns of Hugging Face's imagefolder: ``file_name`` and a caption."""
TRANSPARENT = "white"
"""Colour behind transparent pixels."""
UNREADABLE = (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError)
"""Exceptions of Pillow for files that are damaged or no images, and of parsing ffmpeg's output."""


class Wanted(NamedTuple):
    """Required pixels of one sample: the VAE's input."""

    channels: int
    frames: int
    height: int
    width: int
    fps: float | None
    """Frames per second; None: every frame of the file."""


class Header(NamedTuple):
    """Result of checking a file's header."""

    flaw: str | None
    """Reason why the file cannot be used, as the end of a sentence; None: it can."""
    enlarged: bool = False
    """True if the file is smaller than required."""


def suffix(name: str) -> str:
    """Return the suffix of ``name`` in lower case, with its dot."""
    return PurePosixPath(name).suffix.lower()


def captions(place: Place, names: Sequence[str], wanted: Wanted) -> dict[str, str]:
    """Return the caption of every image or video among ``names`` (relative to ``place``).

    Raises InputError unless each has one, every caption has a file, and all files are of the ``wanted`` kind.
    """
    kind, suffixes, other = ("video", VIDEOS, IMAGES) if wanted.frames > 1 else ("image", IMAGES, VIDEOS)
    if strangers := [name for name in names if suffix(name) in other]:
        raise InputError(
            f"{place.url}: {strangers[0]} is no {kind}, but the teacher makes {wanted.frames} frame(s) of"
            f" {wanted.width} x {wanted.height} pixels; import {kind}s alone ({', '.join(suffixes)})"
        )
    if wanted.channels not in (1, 3):
        raise InputError(
            f"{place.url}: the teacher's pixels have {wanted.channels} channels; files have 1 or 3"
        )
    media = [name for name in names if suffix(name) in suffixes]
    tables = [name for name in names if PurePosixPath(name).parent.name == "" and name in _tables()]
    raw = _from_table(place, tables, names) if tables else _from_texts(place, names)
    texts = {name: clean_text(text, f"{place.url}: the caption of {name}") for name, text in raw.items()}
    if bare := [name for name in media if not texts.get(name)]:
        raise InputError(
            f"{place.url}: {len(bare)} of {len(media)} {kind}s have no caption, first: {bare[0]}; write it into a .txt"
            f" file of the same name, or into {TABLE}.csv"
        )
    return {name: texts[name] for name in media}


def _tables() -> tuple[str, ...]:
    return tuple(f"{TABLE}{kind}" for kind in TABLES)


def _from_texts(place: Place, names: Sequence[str]) -> dict[str, str]:
    """Return the captions in the .txt files that have the names of images and videos."""
    texts = [name for name in names if suffix(name) == ".txt"]
    stems = {str(PurePosixPath(name).with_suffix("")): name for name in texts}
    media = [name for name in names if suffix(name) in (*IMAGES, *VIDEOS)]
    owners = {name: stems.get(str(PurePosixPath(name).with_suffix(""))) for name in media}
    if lost := sorted(set(texts) - set(owners.values())):
        raise InputError(
            f"{place.url}: {len(lost)} of {len(texts)} captions have no file, first: {lost[0]}; add the image or"
            " video of this name, or remove the caption"
        )
    system, root = open_once(place)
    if huge := next((name for name in texts if system.size(f"{root}/{name}") > LARGEST_TEXT), None):
        raise InputError(
            f"{place.url}/{huge} is larger than {LARGEST_TEXT:,} bytes; expected a caption of at most"
            f" {LONGEST:,} characters"
        )
    contents = system.cat_ranges([f"{root}/{name}" for name in texts], None, None, on_error="raise")
    written = {name: decode_text(content, f"{place.url}/{name}") for name, content in zip(texts, contents)}
    return {name: written[text] for name, text in owners.items() if text is not None}


def _from_table(place: Place, tables: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """Return the captions in the one table in the folder."""
    texts = [name for name in names if suffix(name) == ".txt"]
    if len(tables) > 1 or texts:
        raise InputError(
            f"{place.url} has captions in both {tables[0]} and {[*tables[1:], *texts][0]}; remove one of them"
        )
    system, root = open_once(place)
    where = f"{place.url}/{tables[0]}"
    frame = read_table(where, suffix(tables[0]), system.cat_file(f"{root}/{tables[0]}"))
    if "file_name" not in frame.columns:
        raise InputError(f"{where} has no column file_name; add one with the paths of the files")
    files, existing = [str(name) for name in frame["file_name"]], set(names)
    if lost := [name for name in files if name not in existing]:
        raise InputError(
            f"{where}: {len(lost)} of {len(files)} captions have no file, first: {lost[0]}; add it, or remove its row"
        )
    if twice := [name for name, count in Counter(files).items() if count > 1]:
        raise InputError(f"{where} has {twice[0]} twice; remove one of the rows")
    return dict(zip(files, text_column(frame, where)))


def header(place: Place, name: str, wanted: Wanted) -> Header:
    """Check that the file can be read and has the ``wanted`` pixels; of an image only the beginning is read."""
    try:
        return (
            _image_header(place, name, wanted)
            if suffix(name) in IMAGES
            else _video_header(place, name, wanted)
        )
    except InputError:
        raise
    except UNREADABLE as error:
        return Header(_unread(error))


def _image_header(place: Place, name: str, wanted: Wanted) -> Header:
    system, root = open_once(place)
    with system.open(f"{root}/{name}", "rb") as stream, Image.open(stream) as image:
        size, mode = image.size, image.mode
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
    if mode.startswith(("I", "F")):
        return Header("has more than 8 bits per channel; save it with 8")
    return Header(None, _smaller(size[::-1] if turned else size, wanted))


def _video_header(place: Place, name: str, wanted: Wanted) -> Header:
    """Read the ``wanted`` frames: the frame count in a container is often wrong."""
    counted = [*_frame_options(wanted, []), "-f", "null", "-progress", "-", "-nostats", "-"]
    with _local(place, name) as path:
        first = _ffmpeg(path, ["-frames:v", "1", "-c:v", "png", "-f", "image2pipe", "-"])
        facts = _ffmpeg(path, counted).decode()
    there = int(facts.rpartition("frame=")[2].split()[0])
    with Image.open(io.BytesIO(first)) as image:
        return Header(_short(there, wanted), _smaller(image.size, wanted))


def _smaller(size: tuple[int, int], wanted: Wanted) -> bool:
    return size[0] < wanted.width or size[1] < wanted.height


def _short(there: int, wanted: Wanted) -> str | None:
    if there >= wanted.frames:
        return None
    rate = "" if wanted.fps is None else f" at {wanted.fps:g} per second"
    return f"has {there} frames{rate}, {wanted.frames} are wanted; give longer ones, or change trajectories.source.fps"


def _unread(error: Exception) -> str:
    return f"cannot be read ({one_line(error, 120)}); replace or remove it"


def pixels(place: Place, name: str, wanted: Wanted) -> Tensor:
    """Return the file's pixels in [-1, 1], [1, C, T, H, W]: scaled to cover the wanted size, then centre-cropped; of
    videos the first frames. InputError if they cannot be read.
    """
    try:
        frames = _image(place, name, wanted) if suffix(name) in IMAGES else _video(place, name, wanted)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{place.url}/{name} {_unread(error)}") from error
    levels = torch.from_numpy(np.stack(frames)).movedim(-1, 0).float()
    return (levels / 127.5 - 1)[None]


def _image(place: Place, name: str, wanted: Wanted) -> list[np.ndarray]:
    system, root = open_once(place)
    with Image.open(io.BytesIO(system.cat_file(f"{root}/{name}"))) as image:
        return [_fit(_opaque(ImageOps.exif_transpose(image)), wanted)]


def _video(place: Place, name: str, wanted: Wanted) -> list[np.ndarray]:
    size = f"{wanted.width}:{wanted.height}"
    cut = [f"scale={size}:force_original_aspect_ratio=increase:flags=lanczos", f"crop={size}"]
    with _local(place, name) as path:
        raw = _ffmpeg(path, [*_frame_options(wanted, cut), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"])
    frames = np.frombuffer(raw, np.uint8).reshape(-1, wanted.height, wanted.width, 3)
    if short := _short(len(frames), wanted):
        raise InputError(f"{place.url}/{name} {short}")
    return [_fit(Image.fromarray(frame), wanted) for frame in frames]


def _frame_options(wanted: Wanted, filters: list[str]) -> list[str]:
    """Return ffmpeg's options for the ``wanted`` frames through ``filters``; no frame is interpolated."""
    rate = [] if wanted.fps is None else [f"fps={wanted.fps}"]
    steps = ",".join([*rate, *filters])
    taken = ["-map", "0:v:0", "-fps_mode", "passthrough", "-frames:v", str(wanted.frames)]
    return [*taken, *(["-vf", steps] if steps else [])]


def _opaque(image: Image.Image) -> Image.Image:
    behind = Image.new("RGBA", image.size, TRANSPARENT)
    behind.alpha_composite(image.convert("RGBA"))
    return behind.convert("RGB")


def _fit(image: Image.Image, wanted: Wanted) -> np.ndarray:
    """Return the levels [H, W, C] of ``image``, scaled and cropped to ``wanted``."""
    fitted = ImageOps.fit(image, (wanted.width, wanted.height), Image.Resampling.LANCZOS)
    return np.asarray(fitted if wanted.channels == 3 else fitted.convert("L")).reshape(
        wanted.height, wanted.width, wanted.channels
    )


def _ffmpeg(path: str, output: list[str]) -> bytes:
    """Return ffmpeg's output for the file; OSError with its reason if it cannot read it."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe
    except ImportError as error:
        raise InputError(
            f"{path} is a video and imageio-ffmpeg is not installed; pip install 'rcm-distill[video]'"
        ) from error
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", path, *output]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode or not done.stdout:
        # brackets hold the component of ffmpeg and its memory address
        raise OSError(re.sub(r"\[[^]]*\] ", "", done.stderr.decode(errors="replace")) or "it has no frames")
    return done.stdout


@contextmanager
def _local(place: Place, name: str) -> Iterator[str]:
    """Yield the path of the file on this machine; ffmpeg cannot read from S3."""
    system, root = open_once(place)
    if not place.remote:
        yield f"{root}/{name}"
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(name).name
        system.get_file(f"{root}/{name}", str(copy))
        yield str(copy)

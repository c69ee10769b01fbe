"""WebDataset tars of latents, text embeddings and prompts, the training data of NVlabs/rcm.

A sample is ``<key>.latent.pt``, ``<key>.embed.pt`` (may be absent) and ``<key>.prompt.txt``: what NVlabs/rcm's loader
takes as latents, t5_text_embeddings and prompts. Its published set has latents [16, 21, 60, 104] and embeddings
[512, 4096] in bfloat16; the latents are what its sampler ended with: on the network's own scale, as ours are.
"""

from __future__ import annotations

import io
import math
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcm_core.data.prompts import LARGEST_TEXT, LONGEST, clean_text, decode_text
from rcm_core.data.trajectory_store import Place, open_once
from rcm_core.errors import InputError
from rcm_core.protocols import Condition
from rcm_core.storage.formats import read_pickled

LATENT, TEXT, PROMPT = "latent.pt", "embed.pt", "prompt.txt"
SPARE = 2**20
"""Largest number of bytes of a file besides its one tensor."""
TENSORS = (".pt", ".pth", ".npy", ".safetensors")
"""Suffixes of members that must belong to a sample; members with other suffixes (a readme) are ignored."""
Span = tuple[int, int]
"""Half-open range of bytes: first byte, and the one behind the last."""


class Member(NamedTuple):
    """Position of one sample in its tar."""

    tar: str
    key: str
    prompt: str
    latent: Span
    text: Span | None


def members(place: Place, tar: str) -> list[Member]:
    """Return the samples of ``tar`` in the order of their keys; reads headers and prompts.

    Raises InputError if ``tar`` is incomplete, or a sample lacks its latents or its prompt.
    """
    where = f"{place.url}/{tar}"
    system, root = open_once(place)
    parts: dict[str, dict[str, Any]] = {}
    others: list[str] = []
    try:
        with system.open(f"{root}/{tar}", "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for entry in archive:
                key, part = _split(entry.name)
                if entry.isdir() or PurePosixPath(entry.name).name.startswith("."):
                    continue
                if part is None:
                    others += [entry.name] if entry.name.endswith(TENSORS) else []
                    continue
                if part in parts.setdefault(key, {}):
                    raise InputError(f"{where} holds {entry.name} twice; remove one of them")
                parts[key][part] = _content(archive, entry, part, where)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{where} is not a complete tar of samples ({error}); fetch it again") from error
    _refuse_missing(parts, others, where)
    return [
        Member(tar, key, sample[PROMPT], sample[LATENT], sample.get(TEXT))
        for key, sample in sorted(parts.items())
    ]


def _split(name: str) -> tuple[str, str | None]:
    """Return the key (it may have dots) and the part of a member; part None: not a part of a sample."""
    for part in (LATENT, TEXT, PROMPT):
        if name.endswith(f".{part}"):
            return name.removesuffix(f".{part}").removeprefix("./").lstrip("/"), part
    return name, None


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo, part: str, where: str) -> Any:
    """Return the text of a prompt, or the span of a tensor file."""
    if not entry.isreg() or entry.issparse():
        raise InputError(f"{where}: {entry.name} is a link or has holes; write it as a plain file")
    if part != PROMPT:
        return entry.offset_data, entry.offset_data + entry.size
    if entry.size > LARGEST_TEXT:
        raise InputError(
            f"{where}: {entry.name} has {entry.size:,} bytes; expected a prompt of at most {LONGEST:,} characters"
        )
    named = f"{where}: {entry.name}"
    content = archive.extractfile(entry).read()  # type: ignore[union-attr]
    return clean_text(decode_text(content, named), named)


def _refuse_missing(parts: Mapping[str, Mapping[str, Any]], others: Sequence[str], where: str) -> None:
    """Raise InputError unless every sample is complete and the ``others`` belong to samples."""
    expected = f"expected {LATENT}, {PROMPT} and maybe {TEXT} of every sample"
    for key, sample in sorted(parts.items()):
        for part in (LATENT, PROMPT):
            if not sample.get(part):
                raise InputError(f"{where}: sample {key} has no {part}; {expected}")
    if not parts:
        raise InputError(
            f"{where} holds no samples; expected members called <key>.{LATENT} and <key>.{PROMPT}"
        )
    for name in others:
        # other parts of a sample are ignored: its key is the part of their name before one of the dots
        stem = name.removeprefix("./").lstrip("/")
        dots = [i for i, letter in enumerate(stem) if letter == "."]
        if not any(stem[:i] in parts for i in dots):
            raise InputError(f"{where}: {name} belongs to no sample; {expected}, or remove it")


def latents(place: Place, member: Member, shape: tuple[int, ...]) -> Tensor:
    """Return the sample's latents [1, C, T, H, W], float32; in the file, images may lack T. InputError unless their
    shape is ``shape``, the teacher's.
    """
    where = f"{place.url}/{member.tar}: {member.key}.{LATENT}"
    most = SPARE + 8 * math.prod(shape)
    if member.latent[1] - member.latent[0] > most:
        raise InputError(f"{where} is larger than {most:,} bytes; expected one tensor {list(shape)}")
    value = _load(place, member, member.latent, where)
    if not isinstance(value, Tensor):
        raise InputError(f"{where} holds a {type(value).__name__}; expected a tensor {list(shape)}")
    _refuse_numbers(value, where)
    if value.ndim == 3 and shape[1] == 1:
        value = value[:, None]
    if tuple(value.shape) != shape:
        raise InputError(
            f"{where} has the shape {list(value.shape)}, but the teacher's latents are {list(shape)}; import latents of"
            " this teacher's VAE and size, or change teacher.shape"
        )
    return value[None].float()


def condition(place: Place, member: Member, like: Condition) -> Condition:
    """Return the sample's prompt embedding, [1, ...] each. The file has one tensor if the family has one, else a dict.

    Raises InputError unless names and shapes are those of ``like``, an embedding by the family's own text encoder.
    """
    where = f"{place.url}/{member.tar}: {member.key}.{TEXT}"
    assert member.text is not None
    value = _load(place, member, member.text, where)
    if isinstance(value, Tensor) and len(like) == 1:
        value = {next(iter(like)): value}
    values = value.values() if isinstance(value, Mapping) else [value]
    if strange := [type(v).__name__ for v in values if not isinstance(v, Tensor)]:
        raise InputError(f"{where} holds a {strange[0]}; expected tensors")
    for tensor in values:
        _refuse_numbers(tensor, where, whole=True)  # masks are whole numbers
    expected = {name: list(tensor.shape[1:]) for name, tensor in like.items()}
    shapes = {k: list(v.shape) for k, v in value.items()} if isinstance(value, Mapping) else "a tensor"
    if shapes != expected:
        raise InputError(
            f"{where} is {shapes}, but this teacher is conditioned on {expected}; leave the {TEXT} members out to have"
            " the prompts encoded"
        )
    return {name: value[name][None].to(tensor.dtype) for name, tensor in like.items()}


def _refuse_numbers(value: Tensor, where: str, whole: bool = False) -> None:
    """Raise InputError unless ``value`` is a dense tensor of floating-point numbers (or of ``whole`` ones)."""
    usable = value.is_floating_point() or (whole and not value.is_complex())
    if not usable or value.layout != torch.strided or value.is_meta:
        raise InputError(
            f"{where} is a tensor of {str(value.dtype).removeprefix('torch.')} ({value.layout}, {value.device});"
            " expected floating-point numbers; save it as float32, float16 or bfloat16"
        )


def _load(place: Place, member: Member, span: Span, where: str) -> Any:
    """Return the object that torch.save wrote in ``span``; only tensors are unpickled."""
    system, root = open_once(place)
    content = system.cat_file(f"{root}/{member.tar}", start=span[0], end=span[1])
    return read_pickled(io.BytesIO(content), where, "save tensors alone")

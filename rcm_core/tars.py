"""WebDataset tars of latents, text embeddings and prompts, as NVlabs/rcm trains on.

A sample is ``<key>.latent.pt``, ``<key>.embed.pt`` (may be absent) and ``<key>.prompt.txt``: what NVlabs/rcm's loader
takes as latents, t5_text_embeddings and prompts. Its published set has latents [16, 21, 60, 104] and embeddings
[512, 4096] in bfloat16; the latents are what its sampler ended with: on the network's own scale, as ours are.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.protocols import Condition
from rcm_core.trajectory_store import Place, opened

LATENT, TEXT, PROMPT = "latent.pt", "embed.pt", "prompt.txt"
Span = tuple[int, int]
"""First byte and the one behind the last."""


class Member(NamedTuple):
    """Where one sample lies in its tar."""

    tar: str
    key: str
    prompt: str
    latent: Span
    text: Span | None


def members(place: Place, tar: str) -> list[Member]:
    """The samples of ``tar`` in the order of their keys; reads headers and prompts.

    InputError if it is no whole tar, or a sample lacks its latents or its prompt.
    """
    where = f"{place.url}/{tar}"
    system, root = opened(place)
    parts: dict[str, dict[str, Any]] = {}
    try:
        with system.open(f"{root}/{tar}", "rb") as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for entry in archive:
                folder, _, name = entry.name.rpartition("/")
                key, _, part = name.partition(".")
                if entry.isfile() and part in (LATENT, TEXT, PROMPT):
                    found: Any = (entry.offset_data, entry.offset_data + entry.size)
                    if part == PROMPT:
                        found = archive.extractfile(entry).read().decode()  # type: ignore[union-attr]
                    parts.setdefault(f"{folder}/{key}".lstrip("/"), {})[part] = found
    except (tarfile.TarError, UnicodeDecodeError) as error:
        raise InputError(f"{where} is no whole tar of samples ({error}); fetch it again") from error
    for key, there in sorted(parts.items()):
        for part in (LATENT, PROMPT):
            if not there.get(part):
                raise InputError(
                    f"{where}: sample {key} has no {part}; expected {LATENT}, {PROMPT} and maybe {TEXT} of every sample"
                )
    if not parts:
        raise InputError(
            f"{where} holds no samples; expected members called <key>.{LATENT} and <key>.{PROMPT}"
        )
    return [
        Member(tar, key, " ".join(there[PROMPT].split()), there[LATENT], there.get(TEXT))
        for key, there in sorted(parts.items())
    ]


def latents(place: Place, member: Member, shape: tuple[int, ...]) -> Tensor:
    """The sample's latents [1, C, T, H, W], float32; those of an image may lack T. InputError unless their ``shape`` is
    the teacher's.
    """
    where = f"{place.url}/{member.tar}: {member.key}.{LATENT}"
    value = _loaded(place, member, member.latent, where)
    if not isinstance(value, Tensor):
        raise InputError(f"{where} holds a {type(value).__name__}; expected a tensor {list(shape)}")
    if value.ndim == 3 and shape[1] == 1:
        value = value[:, None]
    if tuple(value.shape) != shape:
        raise InputError(
            f"{where} is {list(value.shape)}, but the teacher's latents are {list(shape)}; give latents of this"
            " teacher's VAE and size, or change teacher.shape"
        )
    return value[None].float()


def condition(place: Place, member: Member, like: Condition) -> Condition:
    """The sample's embedded prompt, [1, ...] each: one tensor if the family has one, else tensors by name.

    InputError unless names and shapes are those of ``like``, which the family's own text encoder made.
    """
    where = f"{place.url}/{member.tar}: {member.key}.{TEXT}"
    assert member.text is not None
    value = _loaded(place, member, member.text, where)
    if isinstance(value, Tensor) and len(like) == 1:
        value = {next(iter(like)): value}
    expected = {name: list(tensor.shape[1:]) for name, tensor in like.items()}
    found = {k: list(v.shape) for k, v in value.items()} if isinstance(value, Mapping) else "a tensor"
    if found != expected:
        raise InputError(
            f"{where} is {found}, but this teacher is conditioned on {expected}; leave the {TEXT} members out, and the"
            " prompts are encoded"
        )
    return {name: value[name][None].to(tensor.dtype) for name, tensor in like.items()}


def _loaded(place: Place, member: Member, span: Span, where: str) -> Any:
    """What torch.save wrote between these bytes; nothing is unpickled but tensors."""
    system, root = opened(place)
    content = system.cat_file(f"{root}/{member.tar}", start=span[0], end=span[1])
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(
            f"{where} is no tensor that can be read safely ({reason}); save tensors alone"
        ) from error

"""Import of existing training samples: images or videos with captions, or tars of latents (docs/data.md)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rcm_core.config.sections import SourceSection
from rcm_core.data import image_folder, webdataset
from rcm_core.data.image_folder import IMAGES, VIDEOS, Header, Wanted
from rcm_core.data.prompts import refuse_overlap
from rcm_core.data.trajectory_store import Place
from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.execution import Executor
from rcm_core.pipelines.vae import pixel_shape
from rcm_core.protocols import Condition
from rcm_core.rng import generator
from rcm_core.samplers.jobs import Teacher, codec_of, conditions, negative_condition
from rcm_core.storage.files import sha256
from rcm_core.storage.run_folder import RunFolder

KEY = "trajectories.source"
CHUNK = 256
"""Number of files whose headers one task reads."""


class Sample(NamedTuple):
    """One sample of a source."""

    name: str
    prompt: str
    member: webdataset.Member | None
    """Position in a tar; None: ``name`` is a file."""


@dataclass(frozen=True)
class Source:
    """An imported source: its samples in the order of ids, checked as far as that is cheap."""

    place: Place
    wanted: Wanted | None
    """Required pixels; None: the source has latents."""
    samples: tuple[Sample, ...]
    hash: str
    """Hash of names, contents and captions."""


@dataclass(frozen=True)
class Look:
    """Files that one task checks before the expensive part."""

    place: Place
    names: tuple[str, ...]
    wanted: Wanted | None


def find(section: SourceSection, teacher: Teacher, workspace: Path, executor: Executor, seed: int) -> Source:
    """Return the source of ``section``, shuffled by ``seed`` so that the held-out last samples are like the rest.

    Raises InputError if captions or headers show that a sample does not fit this teacher, or if a caption is among the
    prompts of validation or test.
    """
    remote = "://" in section.folder
    place = Place(section.folder.rstrip("/") if remote else str(workspace / section.folder), section.endpoint)
    listed = _list_files(place)
    wanted = None
    if not (archives := _archives(place, list(listed))):
        wanted = Wanted(*pixel_shape(Path(teacher.folder), teacher.shape), section.fps)
    if section.fps is not None and (wanted is None or wanted.frames == 1):
        raise InputError(f"{KEY}.fps is {section.fps:g}, but {place.url} has no videos; set it to null")
    if wanted is None:
        samples, digests = _in_tars(place, archives, teacher, executor)
    else:
        samples, digests = _in_files(place, list(listed), wanted, executor)
    splits = {split: RunFolder.of(workspace).prompts(split) for split in ("validation", "test")}
    refuse_overlap({KEY: list(dict.fromkeys(s.prompt for s in samples)), **splits})
    content = [f"{name}\0{digests[name] or listed[name]}" for name in sorted(digests)]
    content += [f"{sample.name}\0{sample.prompt}" for sample in samples]
    digest = hashlib.sha256("\n".join(content).encode()).hexdigest()
    print(f"trajectories: {len(samples)} samples in {section.folder}", flush=True)
    order = torch.randperm(len(samples), generator=generator(seed, "import")).tolist()
    return Source(place, wanted, tuple(samples[i] for i in order), digest)


def _list_files(place: Place) -> dict[str, str]:
    """Return the files below ``place`` that are not hidden, by sorted name, with the listing's checksum or ""."""
    system, root = place.open()
    if not system.isdir(root):
        raise InputError(
            f"{KEY}.folder names {place.url}, which does not exist; name a folder, or s3://bucket/prefix"
        )
    listed = system.find(root, detail=True, withdirs=True)
    _refuse_folders(place, [p for p, facts in listed.items() if facts["type"] == "directory" and p != root])
    checksums = {
        path.removeprefix(root).lstrip("/"): str(facts.get("ETag", ""))
        for path, facts in listed.items()
        if facts["type"] != "directory"
    }
    return {
        name: checksums[name]
        for name in sorted(checksums)
        if not any(p.startswith(".") for p in name.split("/"))
    }


def _refuse_folders(place: Place, folders: Sequence[str]) -> None:
    """Raise InputError if one of ``folders`` has the name of a file to import."""
    wrong = [path for path in sorted(folders) if image_folder.suffix(path) in (*IMAGES, *VIDEOS, ".tar")]
    if wrong:
        raise InputError(
            f"{place.url}: {wrong[0]} is a folder, but has the name of a file to import; rename or remove it"
        )


def _archives(place: Place, names: Sequence[str]) -> list[str]:
    """Return the tars among ``names``; InputError if there are images or videos too, or nothing to import."""
    archives = [name for name in names if image_folder.suffix(name) == ".tar"]
    media = [name for name in names if image_folder.suffix(name) in (*IMAGES, *VIDEOS)]
    if archives and media:
        raise InputError(
            f"{place.url} holds both {archives[0]} and {media[0]}; expected only tars of latents, or only images or"
            " videos: remove the others"
        )
    if not archives and not media:
        raise InputError(
            f"{place.url} holds {len(names)} files and none that can be imported; expected images"
            f" ({', '.join(IMAGES)}), videos ({', '.join(VIDEOS)}) or tars of latents (.tar)"
        )
    return archives


def _in_files(
    place: Place, names: Sequence[str], wanted: Wanted, executor: Executor
) -> tuple[list[Sample], dict[str, str]]:
    """Return images or videos in the order of their names, and digests of the files."""
    texts = image_folder.captions(place, names, wanted)
    files = list(texts)
    looks = [Look(place, tuple(files[i : i + CHUNK]), wanted) for i in range(0, len(files), CHUNK)]
    seen = {name: facts for part in executor.map(see_files, looks, KEY) for name, facts in part.items()}
    flaws = [(name, seen[name][1].flaw) for name in files if seen[name][1].flaw]
    if flaws:
        raise InputError(
            f"{place.url}: {len(flaws)} of {len(files)} files cannot be used, first: {' '.join(map(str, flaws[0]))}"
        )
    if small := [name for name in files if seen[name][1].enlarged]:
        print(
            f"trajectories: {len(small)} of {len(files)} files are smaller than {wanted.width} x {wanted.height} pixels"
            f" and will be enlarged, first: {small[0]}",
            flush=True,
        )
    return [Sample(name, text, None) for name, text in texts.items()], {n: seen[n][0] for n in files}


def _in_tars(
    place: Place, names: Sequence[str], teacher: Teacher, executor: Executor
) -> tuple[list[Sample], dict[str, str]]:
    """Return samples in the order of tars and keys, the first of them fully checked, and digests of the tars."""
    looks = [Look(place, (name,), None) for name in names]
    seen = {name: facts for part in executor.map(see_tars, looks, KEY) for name, facts in part.items()}
    members = [member for name in names for member in seen[name][1]]
    bare = [m for m in members if m.text is None]
    if bare and len(bare) < len(members):
        raise InputError(
            f"{place.url}: {len(bare)} of {len(members)} samples have no {webdataset.TEXT}, first: {bare[0].key} of"
            f" {bare[0].tar}; add it to all of them, or remove it from the others"
        )
    webdataset.latents(place, members[0], teacher.shape)
    if not bare:
        webdataset.condition(place, members[0], _like(teacher))
    return [Sample(f"{m.tar}/{m.key}", m.prompt, m) for m in members], {n: seen[n][0] for n in names}


def see_files(item: Look) -> dict[str, tuple[str, Header]]:
    """Return digest and header by name (executors map this function)."""
    assert item.wanted is not None
    return {
        name: (_digest(item.place, name), image_folder.header(item.place, name, item.wanted))
        for name in item.names
    }


def see_tars(item: Look) -> dict[str, tuple[str, list[webdataset.Member]]]:
    """Return digest and samples by name (executors map this function)."""
    return {name: (_digest(item.place, name), webdataset.members(item.place, name)) for name in item.names}


def _digest(place: Place, name: str) -> str:
    """Return the digest of the file's bytes; empty on S3, where the listing has one."""
    return "" if place.remote else sha256(Path(place.url) / name)


def _like(teacher: Teacher) -> Condition:
    """Return a condition by the teacher's own text encoder."""
    return negative_condition(teacher, torch.device("cpu"))


def load(source: Source, teacher: Teacher, device: str) -> dict[str, Tensor]:
    """Return latents and prompt embeddings under their names in a store; InputError if a sample does not fit."""
    members = [sample.member for sample in source.samples if sample.member is not None]
    if source.wanted is None:
        rows = [webdataset.latents(source.place, member, teacher.shape) for member in members]
    else:
        rows = [_encode(source.place, s.name, source.wanted, teacher, device) for s in source.samples]
    if members and members[0].text is not None:
        like = _like(teacher)
        texts = [webdataset.condition(source.place, member, like) for member in members]
        condition: Condition = {name: torch.cat([text[name] for text in texts]) for name in like}
    else:
        prompts = tuple(sample.prompt for sample in source.samples)
        condition = conditions(teacher, prompts, resolve_device(device))
    return {"x0": torch.cat(rows), **{f"condition.{k}": v.cpu().contiguous() for k, v in condition.items()}}


def _encode(place: Place, name: str, wanted: Wanted, teacher: Teacher, device: str) -> Tensor:
    """Return the latents [1, C, T, H, W] of one file; a batch of clips would not fit into memory."""
    codec = codec_of(teacher.folder, teacher.family, resolve_device(device).type)
    latents = codec.encode(image_folder.pixels(place, name, wanted)).float()
    if tuple(latents.shape[1:]) != teacher.shape:
        raise InputError(
            f"{place.url}/{name} encodes to latents of shape {list(latents.shape[1:])}, but teacher.shape is"
            f" {list(teacher.shape)}; correct teacher.shape"
        )
    return latents

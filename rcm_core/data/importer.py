"""Samples for training that are there already: images or videos with captions, or tars of latents (docs/data.md)."""

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
"""Files whose headers one task reads."""


class Sample(NamedTuple):
    """One of the source's."""

    name: str
    prompt: str
    member: webdataset.Member | None
    """Where it lies in a tar; None: ``name`` is a file."""


@dataclass(frozen=True)
class Source:
    """What was found, in the order of sample ids, and checked as far as that is cheap."""

    place: Place
    wanted: Wanted | None
    """Pixels; None: there are latents."""
    samples: tuple[Sample, ...]
    hash: str
    """Of names, contents and captions."""


@dataclass(frozen=True)
class Look:
    """Files that one task looks into before the expensive part."""

    place: Place
    names: tuple[str, ...]
    wanted: Wanted | None


def find(section: SourceSection, teacher: Teacher, workspace: Path, executor: Executor, seed: int) -> Source:
    """The source of ``section``, its samples shuffled by ``seed``: the last, which probes hold back, are like the rest.

    InputError unless every sample has what it needs for this teacher, as far as captions and headers tell, and no
    caption is among the prompts that choose or report.
    """
    remote = "://" in section.folder
    place = Place(section.folder.rstrip("/") if remote else str(workspace / section.folder), section.endpoint)
    listed = _list_files(place)
    wanted = None
    if not (archives := _archives(place, list(listed))):
        wanted = Wanted(*pixel_shape(Path(teacher.folder), teacher.shape), section.fps)
    if section.fps is not None and (wanted is None or wanted.frames == 1):
        raise InputError(f"{KEY}.fps is {section.fps:g}, but {place.url} is for no videos; set it to null")
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
    """Names of all files below ``place`` that are not hidden, sorted, with the listing's own checksum if it has one."""
    system, root = place.open()
    if not system.isdir(root):
        raise InputError(
            f"{KEY}.folder names {place.url}, which is no folder that exists; give one, or s3://bucket/prefix"
        )
    listed = system.find(root, detail=True, withdirs=True)
    _refuse_folders(place, [p for p, facts in listed.items() if facts["type"] == "directory" and p != root])
    found = {
        path.removeprefix(root).lstrip("/"): str(facts.get("ETag", ""))
        for path, facts in listed.items()
        if facts["type"] != "directory"
    }
    return {
        name: found[name] for name in sorted(found) if not any(p.startswith(".") for p in name.split("/"))
    }


def _refuse_folders(place: Place, folders: Sequence[str]) -> None:
    """InputError if one of ``folders`` is called as a file that would be imported."""
    wrong = [path for path in sorted(folders) if image_folder.suffix(path) in (*IMAGES, *VIDEOS, ".tar")]
    if wrong:
        raise InputError(
            f"{place.url}: {wrong[0]} is a folder, but is called as a file to be imported; rename or remove it"
        )


def _archives(place: Place, names: Sequence[str]) -> list[str]:
    """The tars among ``names``; InputError if there are images and videos too, or nothing to be imported."""
    archives = [name for name in names if image_folder.suffix(name) == ".tar"]
    media = [name for name in names if image_folder.suffix(name) in (*IMAGES, *VIDEOS)]
    if archives and media:
        raise InputError(
            f"{place.url} holds both {archives[0]} and {media[0]}; give tars of latents, or images or videos"
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
    """Images or videos in the order of their names, and digests of the files."""
    texts = image_folder.captions(place, names, wanted)
    files = list(texts)
    looks = [Look(place, tuple(files[i : i + CHUNK]), wanted) for i in range(0, len(files), CHUNK)]
    seen = {name: facts for part in executor.map(see_files, looks, KEY) for name, facts in part.items()}
    flaws = [(name, seen[name][1].flaw) for name in files if seen[name][1].flaw]
    if flaws:
        raise InputError(
            f"{place.url}: {len(flaws)} of {len(files)} files will not do: {' '.join(map(str, flaws[0]))}"
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
    """Samples in the order of tars and keys, the first of them checked whole, and digests of the tars."""
    looks = [Look(place, (name,), None) for name in names]
    seen = {name: facts for part in executor.map(see_tars, looks, KEY) for name, facts in part.items()}
    members = [member for name in names for member in seen[name][1]]
    bare = [m for m in members if m.text is None]
    if bare and len(bare) < len(members):
        raise InputError(
            f"{place.url}: {len(bare)} of {len(members)} samples have no {webdataset.TEXT}, first: {bare[0].key} of"
            f" {bare[0].tar}; give it to all of them, or to none"
        )
    webdataset.latents(place, members[0], teacher.shape)
    if not bare:
        webdataset.condition(place, members[0], _like(teacher))
    return [Sample(f"{m.tar}/{m.key}", m.prompt, m) for m in members], {n: seen[n][0] for n in names}


def see_files(item: Look) -> dict[str, tuple[str, Header]]:
    """Digest and header by name; what executors map over."""
    assert item.wanted is not None
    return {
        name: (_digest(item.place, name), image_folder.header(item.place, name, item.wanted))
        for name in item.names
    }


def see_tars(item: Look) -> dict[str, tuple[str, list[webdataset.Member]]]:
    """Digest and samples by name; what executors map over."""
    return {name: (_digest(item.place, name), webdataset.members(item.place, name)) for name in item.names}


def _digest(place: Place, name: str) -> str:
    """Of the bytes; empty for what lies on S3, where the listing has one."""
    return "" if place.remote else sha256(Path(place.url) / name)


def _like(teacher: Teacher) -> Condition:
    """A condition as the teacher's own text encoder makes it."""
    return negative_condition(teacher, torch.device("cpu"))


def load(source: Source, teacher: Teacher, device: str) -> dict[str, Tensor]:
    """Latents and embedded prompts of the samples, named as a store names them; InputError if one will not do."""
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
    """Latents [1, C, T, H, W] of one file: a batch of clips would not fit."""
    codec = codec_of(teacher.folder, teacher.family, resolve_device(device).type)
    found = codec.encode(image_folder.pixels(place, name, wanted)).float()
    if tuple(found.shape[1:]) != teacher.shape:
        raise InputError(
            f"{place.url}/{name} became latents {list(found.shape[1:])}, but the teacher's are {list(teacher.shape)};"
            " mend teacher.shape"
        )
    return found

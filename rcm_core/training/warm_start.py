"""Warm start: the student of an earlier teacher plus the change in the teacher's weights.

    student = student_old + (teacher_new - teacher_old), tensor by tensor

Fine-tuned models differ from their origin by steps that add up (task arithmetic, Ilharco et al., arXiv 2212.04089).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rcm_core.config.sections import WarmStart
from rcm_core.errors import InputError
from rcm_core.networks.weights import Target, loading
from rcm_core.pipelines.folder import meta_network, read_part
from rcm_core.pipelines.variants import plain_view
from rcm_core.protocols import Family
from rcm_core.storage.checked_json import fit
from rcm_core.storage.fetch import folder_of
from rcm_core.storage.files import sha256_folder
from rcm_core.storage.formats import read_text
from rcm_core.storage.schemas import StudentFacts

KEY = "train.warm_start"


class Origin(NamedTuple):
    """Local folders of an earlier student and the teacher that it was distilled from."""

    student: Path
    teacher: Path
    hashes: dict[str, str]
    """Content hashes of both folders by the parameter that names them."""


def resolve(section: WarmStart, family: str, workspace: Path, cache: Path) -> Origin:
    """Return the folders that ``section`` names, fetched into ``cache`` if they are on S3.

    InputError unless it is a published student of ``family`` and exactly the teacher that it was distilled from.
    """
    student = _here(section.student, section.endpoint, workspace, cache)
    teacher = _here(section.teacher, section.endpoint, workspace, cache)
    facts = _facts(student, section.student)
    if facts["family"] != family:
        raise InputError(
            f"{KEY}.student {section.student} belongs to the family {facts['family']}, but the teacher to {family};"
            " give a student of the same family, or set train.warm_start to null"
        )
    if (variant := facts["teacher"].get("variant")) is not None:
        teacher = plain_view(teacher, variant)
    teacher_hash, expected = sha256_folder(teacher), facts["teacher"]["hash"]
    if teacher_hash != expected:
        raise InputError(
            f"{KEY}.teacher {section.teacher} has content hash {teacher_hash}, but the student was distilled from"
            f" {expected}; give that teacher, or set train.warm_start to null"
        )
    hashes = {f"{KEY}.student": sha256_folder(student), f"{KEY}.teacher": teacher_hash}
    return Origin(student, teacher, hashes)


class Moved(Mapping[str, Tensor]):
    """begin + (after - before), computed tensor by tensor on access: no whole network is held in memory."""

    def __init__(
        self, begin: Mapping[str, Tensor], before: Mapping[str, Tensor], after: Mapping[str, Tensor]
    ) -> None:
        self.begin, self.before, self.after = begin, before, after

    def __getitem__(self, name: str) -> Tensor:
        value = self.after[name]
        if not value.is_floating_point():
            return value
        return self.begin[name].float() + (value.float() - self.before[name].float())

    def __iter__(self) -> Iterator[str]:
        return iter(self.after)

    def __len__(self) -> int:
        return len(self.after)


def initial_weights(family: Family, student: Path, old: Path, new: Path) -> Mapping[str, Tensor]:
    """Return the new student's initial weights; exactly the old student's if the teachers are equal.

    InputError names the setting or the tensor in which the three networks differ.
    """
    for folder in (student, old):
        _refuse_other_config(family.network_class, folder, new)
    with loading(Target(mapped=True)):
        networks = [family.load_network(folder).state_dict() for folder in (student, old, new)]
    begin, before, after = networks
    for name in sorted(after.keys() | begin.keys() | before.keys()):
        shapes = [list(n[name].shape) if name in n else "missing" for n in networks]
        if shapes[0] != shapes[2] or shapes[1] != shapes[2]:
            raise InputError(
                f"{KEY}: {name} is {shapes[0]} in the student, {shapes[1]} in its teacher and {shapes[2]} in the new"
                " teacher; a warm start needs one architecture: set train.warm_start to null"
            )
    return Moved(begin, before, after)


def _refuse_other_config(network_class: str, folder: Path, new: Path) -> None:
    settings, expected = _config(network_class, folder), _config(network_class, new)
    wrong = sorted(k for k in settings.keys() | expected.keys() if settings.get(k) != expected.get(k))
    if wrong:
        raise InputError(
            f"{KEY}: {wrong[0]} is {settings.get(wrong[0])} in {folder} and {expected.get(wrong[0])} in the new"
            " teacher; a warm start needs one architecture: set train.warm_start to null"
        )


def _config(network_class: str, folder: Path) -> dict[str, Any]:
    """Return all settings of the network, including diffusers' defaults, without diffusers' private keys."""
    path = folder / "transformer/config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no transformer/config.json; {KEY} needs folders in diffusers layout")
    network: Any = meta_network(network_class, read_part(folder, "transformer/config.json"))
    values: dict[str, Any] = json.loads(network.to_json_string())
    return {k: v for k, v in values.items() if not k.startswith("_")}


def _facts(student: Path, source: str) -> dict[str, Any]:
    path = student / "student.json"
    if not path.is_file():
        raise InputError(
            f"{KEY}.student {source} has no student.json; give the folder of a published student"
        )
    remedy = f"give {KEY}.student the folder of a published student"
    facts: dict[str, Any] = fit(StudentFacts, read_text(path, remedy), str(path), remedy)
    return facts


def _here(source: str, endpoint: str | None, workspace: Path, cache: Path) -> Path:
    """Return the local folder of ``source``."""
    otherwise = f"{KEY} names {source}, which is not an existing folder; give a folder or s3://bucket/prefix"
    return folder_of(source, endpoint, workspace, cache / "warm_start", otherwise)

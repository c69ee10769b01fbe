"""Samples are functions of seed and id; the device is the requested one."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from families import build

from infra.executors.local import LocalExecutor
from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.models import wan
from rcm_core.rng import address, generator
from rcm_core.samplers.few_step import Sampler
from rcm_core.samplers.jobs import Job, Teacher, noise, read_sampler, sample, split_jobs

SHAPE = (1, 2, 3, 4)


def test_noise_is_addressed_by_seed_and_id() -> None:
    whole = noise(0, (4, 9, 2), 3, SHAPE)
    assert whole.shape == (3, 3, *SHAPE)
    assert torch.equal(noise(0, (9,), 3, SHAPE)[:, 0], whole[:, 1])  # for any batch size
    assert torch.equal(noise(0, (4, 9, 2), 1, SHAPE)[0], whole[0])  # for any number of draws
    assert not torch.equal(noise(1, (9,), 1, SHAPE)[0, 0], whole[0, 1])
    assert not torch.equal(whole[0, 0], whole[0, 1])
    assert not torch.equal(whole[0], whole[1])


def test_noise_is_unit_normal() -> None:
    flat = noise(7, tuple(range(200)), 1, (1, 4, 8, 8)).flatten().double()
    # 51,200 draws: three standard errors of mean and variance
    assert abs(float(flat.mean())) < 3 / len(flat) ** 0.5
    assert abs(float(flat.var()) - 1) < 3 * (2 / len(flat)) ** 0.5


def test_addresses_do_not_run_into_each_other() -> None:
    assert len({address(1, 23), address(12, 3), address("1/2", 3), address(1, "23", ""), address(123)}) == 5
    assert 0 <= address(0, "x") < 2**63
    assert torch.equal(*(torch.rand(3, generator=generator(5, "a", 2)) for _ in range(2)))


def test_jobs_are_cut_without_losing_a_sample() -> None:
    teacher = Teacher("folder", "wan", SHAPE, 2.0, 4, 3.0, "euler", "")
    job = Job(teacher, tuple("abcdefg"), tuple(range(7)), 0, 4)
    parts = split_jobs(job, 3)
    assert [len(part.ids) for part in parts] == [3, 3, 1]
    assert sum((part.prompts for part in parts), ()) == job.prompts
    assert sum((part.ids for part in parts), ()) == job.ids


def test_a_recorded_sampler_is_read_or_its_file_is_named() -> None:
    place = Path("runs/select/selection.json")
    facts = {"kind": "euler", "times": [[1.5708], [1.4, 1.0]]}
    assert read_sampler(facts, place, "select") == Sampler("euler", ((torch.pi / 2,), (1.4, 1.0)))
    broken: list[Any] = [
        None,
        {},
        {"kind": "euler"},
        {"kind": "euler", "times": 3},
        facts | {"times": [["a"]]},
    ]
    for found in broken:
        with pytest.raises(
            InputError, match=r"selection\.json has no sampler, .*; `dvc repro select` makes it"
        ):
            read_sampler(found, place, "select")


def test_a_process_keeps_one_teacher_and_one_student_and_loads_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, loaded, held = build("wan", tmp_path / "teacher"), [], []
    for name in "ab":
        shutil.copytree(tmp_path / "teacher/transformer", tmp_path / name / "transformer")
    load, networks = wan.load_network, WeakSet[torch.nn.Module]()

    def counting(folder: Path) -> torch.nn.Module:
        held.append(len(networks))
        loaded.append(folder.name)
        network = load(folder)
        networks.add(network)
        return network

    monkeypatch.setattr(wan, "load_network", counting)
    teacher = Teacher(str(tmp_path / "teacher"), "wan", tuple(shape), 2.0, 2, 3.0, "euler", "")
    whole = Job(teacher, ("the digit 7",), (0,), 0, 1)
    students = [replace(whole, network=str(tmp_path / name / "transformer")) for name in "ab"]
    jobs = [whole, students[0], students[0], whole, students[1], students[1], whole]
    list(LocalExecutor(tmp_path).map(sample, jobs, "jobs"))
    assert loaded == ["teacher", "a", "b"]
    assert held == [0, 1, 1]
    path = next((tmp_path / "b/transformer").glob("*.safetensors"))
    os.utime(path, ns=(0, 0))  # replace it by another file
    sample(students[1])
    assert loaded[3:] == ["b"]
    assert held[3:] == [1]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(
        InputError, match=r"device cuda was asked for, but torch .* sees no GPU here; set device:"
    ):
        resolve_device("cuda")
    with pytest.raises(InputError, match="device 'gpu' is unknown; expected auto, cpu or cuda"):
        resolve_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cpu") == torch.device("cpu")

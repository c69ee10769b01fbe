"""All mutilated inputs of a project."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from rcm_core.storage.run_folder import RELATIVE, RunFolder
from scripts.bad_inputs.checkpoints import checkpoints
from scripts.bad_inputs.damage import (
    CURVE_DAMAGES,
    TENSOR_DAMAGES,
    json_damages,
    key_damages,
    manifest_damages,
    table_damages,
)
from scripts.bad_inputs.given import list_cases
from scripts.bad_inputs.own_samples import own_samples
from scripts.bad_inputs.params import TEXTS, VALUES
from scripts.bad_inputs.project import Case

SAMPLE = ("sample", "--prompt", "a seven", "--model", "student")
JSON: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    str(RELATIVE.teacher_file): (("run", "trajectories"), ("hash", "shape", "family", "steps", "solver")),
    str(RELATIVE.trajectories / "store.json"): (("run", "train"), ("location",)),
    str(RELATIVE.selection_file): (("run", "publish"), ("choice", "sampler", "steps", "candidates")),
    str(RELATIVE.quality_file): (("run", "publish"), ("protocol", "teacher")),
    str(RELATIVE.metrics_file): (("run", "report"), ("protocol", "teacher")),
    str(RELATIVE.sample_prompts_file): (("run", "report"), ()),
    str(RELATIVE.health_file): (("run", "report"), ("iterations", "spikes", "readings", "step_downs")),
    str(RELATIVE.record_file("train")): (("run", "report"), ("parameters", "inputs", "seconds")),
    str(RELATIVE.record_file("evaluate")): (("run", "report"), ("inputs",)),
    "student/student.json": ((*SAMPLE, "--out", "o.png"), ("family", "shape")),
    "student/scheduler/scheduler_config.json": ((*SAMPLE, "--out", "o.png"), ("kind", "times")),
}
TENSORS = {
    str(RELATIVE.trajectories / "negative.safetensors"): ("run", "train"),
    str(RELATIVE.trajectories / "shards/shard_00001.safetensors"): ("run", "train"),
    str(RELATIVE.samples / "teacher.safetensors"): ("run", "report"),
    "student/transformer/diffusion_pytorch_model.safetensors": (*SAMPLE, "--out", "o.png"),
}


def cases(root: Path) -> Iterator[Case]:
    """Return every input, files first."""
    yield from _files(root)
    yield from _params(root)
    yield from _samples(root)
    yield from _students(root)
    yield from _conversions(root)
    yield from _searches(root)
    yield from list_cases(root)
    yield from own_samples(root)
    yield from checkpoints(root)
    if os.geteuid() == 0:  # who may mount
        yield from _disks(root)


def _files(root: Path) -> Iterator[Case]:
    for place, (command, keys) in JSON.items():
        content = (root / place).read_bytes()
        other = b'{"stage": "other"}'
        damages = json_damages(content, other) | key_damages(content, keys)
        yield Case(place, "missing", command, place)
        for what, damage in damages.items():
            yield Case(place, what, command, place, damage)
    for place, command, column in (
        (str(RELATIVE.prompts_file), ("run", "trajectories"), "prompt"),
        (str(RELATIVE.manifest), ("run", "train"), "prompt"),
    ):
        yield Case(place, "missing", command, place)
        for what, damage in table_damages((root / place).read_bytes(), column).items():
            yield Case(place, what, command, place, damage)
    place = str(RELATIVE.manifest)
    for what, damage in manifest_damages((root / place).read_bytes()).items():
        yield Case(place, what, ("run", "train"), place, damage)
    for place, command in TENSORS.items():
        yield Case(place, "missing", command, place)
        for what, damage in TENSOR_DAMAGES.items():
            yield Case(place, what, command, place, damage)
    place = str(RELATIVE.curves)
    for what, damage in CURVE_DAMAGES.items():
        yield Case(place, what, ("run", "report"), place, damage)


def _params(root: Path) -> Iterator[Case]:
    values = yaml.safe_load((root / "params.yaml").read_text())
    (root / "bad").mkdir()
    for number, (what, text) in enumerate(TEXTS.items()):
        name = f"bad/text{number}.yaml"
        (root / name).write_bytes(text)
        yield Case("params.yaml", what, ("run", "prompts", "--params", name))
    count = 0
    for key, found in VALUES.items():
        for value in found:
            name = f"bad/value{count}.yaml"
            (root / name).write_text(yaml.safe_dump(_with(values, key.split("."), value)))
            yield Case("params.yaml", f"{key} = {str(value)[:60]}", ("run", "prompts", "--params", name))
            count += 1
    for what, key, value, stage in (
        ("report.prompts beyond the samples", "report.prompts", 1000, "report"),
        ("evaluate.diversity_prompts beyond the prompts", "evaluate.diversity_prompts", 1000, "evaluate"),
        ("publish.target is a file", "publish.target", "params.yaml", "publish"),
        ("publish.target below a file", "publish.target", "params.yaml/students", "publish"),
        ("publish.target is empty", "publish.target", "", "publish"),
        ("publish.target is too long", "publish.target", "x" * 300, "publish"),
        ("trajectories.target is a file", "trajectories.target", "params.yaml", "trajectories"),
        ("trajectories.target is too long", "trajectories.target", "x" * 300, "trajectories"),
    ):
        name = f"bad/value{count}.yaml"
        (root / name).write_text(yaml.safe_dump(_with(values, key.split("."), value)))
        yield Case("params.yaml", what, ("run", stage, "--params", name))
        count += 1
    yield Case("params.yaml", "missing", ("run", "prompts", "--params", "none.yaml"))
    yield Case("params.yaml", "a folder", ("run", "prompts", "--params", "bad"))
    yield Case("rcm run", "unknown stage", ("run", "trian"))


def _samples(root: Path) -> Iterator[Case]:
    (root / "folder.png").mkdir()
    (root / "mixed").mkdir()
    for name in ("mine.png", "file", "mixed/notes.txt"):
        (root / name).write_bytes(b"mine")
    outs = (
        "folder.png",
        "file",
        "mine.png",
        "mixed",
        "file/o.png",
        "x" * 300 + ".png",
        "o.jpg",
        "o.mp4",
        "a/" + "y" * 300,
    )
    for out in outs:
        yield Case("rcm sample", f"--out {out[:40]}", (*SAMPLE, "--out", out))
    texts = {
        "UTF-16.txt": "a seven\n".encode("utf-16"), "latin.txt": "sept é\n".encode("latin-1"), "empty.txt": b"",
        "parquet.txt": RunFolder.of(root).prompts_file.read_bytes(), "blank.txt": b"\n \n",
        "bad.parquet": b"PAR1", "bad.csv": b"a,b\n1,2\n", "bad.jsonl": b"{",
        "half.jsonl": b'{"prompt": "\\ud800"}\n',
    }  # fmt: skip
    for name, content in texts.items():
        (root / name).write_bytes(content)
    for name in (*texts, "none.txt", "mixed"):
        given = ("sample", "--model", "student", "--out", "o.png", "--prompts-file", name)
        yield Case("rcm sample", f"--prompts-file {name}", given)
    for what, more in {
        "empty --prompt": ("--prompt", ""), "--steps 0": ("--steps", "0"), "--steps 9": ("--steps", "9"),
        "--steps x": ("--steps", "x"), "--seed -1": ("--seed", "-1"), "--seed huge": ("--seed", str(10**30)),
        "--prompt with half of a surrogate pair": ("--prompt", "a \udcff"), "--prompt with NUL": ("--prompt", "a\0"),
        "--batch 0": ("--batch", "0"), "--what": ("--what",), "--model none": ("--model", "none"),
        "--model a file": ("--model", "params.yaml"), "--model empty": ("--model", "bad"),
    }.items():  # fmt: skip
        yield Case("rcm sample", what, (*SAMPLE, "--out", "o.png", *more))
    place = "student/transformer/diffusion_pytorch_model.safetensors"
    nan = {name: value * float("nan") for name, value in load_file(root / place).items()}
    save_file(nan, root / "nan.safetensors", metadata={"format": "pt"})
    content = (root / "nan.safetensors").read_bytes()
    yield Case("rcm sample", "weights are NaN", (*SAMPLE, "--out", "o.png"), place, lambda _: content)
    for place in (
        "student/tokenizer/tokenizer.json", "student/text_encoder/config.json",
        "student/text_encoder/model.safetensors",
        "student/vae/config.json", "student/transformer/config.json", "student/model_index.json",
    ):  # fmt: skip
        yield Case("rcm sample", f"{place} is missing", (*SAMPLE, "--out", "o.png"), place)
        yield Case(
            "rcm sample", f"{place} is rubbish", (*SAMPLE, "--out", "o.png"), place, lambda _: b"{rubbish"
        )


def _students(root: Path) -> Iterator[Case]:
    place = "student/model_index.json"
    content = (root / place).read_bytes()
    keys = ("transformer", "scheduler", "text_encoder", "tokenizer", "vae")
    for what, damage in (json_damages(content, b'{"a": 1}') | key_damages(content, keys)).items():
        yield Case("published model_index.json", what, (*SAMPLE, "--out", "o.png"), place, damage)
    for what, damage in key_damages(content, ("_class_name",)).items():
        yield Case(
            "published model_index.json", what, (*SAMPLE, "--out", "class.png"), place, damage,
            accepted="diffusers alone asks for its class; here the family in student.json says what is loaded",
        )  # fmt: skip


def _conversions(root: Path) -> Iterator[Case]:
    like, weights = "student", load_file(root / "student/transformer/diffusion_pytorch_model.safetensors")
    given: dict[str, Any] = {
        "nan": {k: v * float("nan") for k, v in weights.items()},
        "int8": {k: v.to(torch.int8) for k, v in weights.items()},
        "none": {"a": torch.zeros(1)},
        "half": dict(list(weights.items())[: len(weights) // 2]),
        "shapes": {k: v[None] for k, v in weights.items()},
    }
    for name, tensors in given.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, root / f"{name}.safetensors")
        yield Case("rcm convert", name, ("convert", f"{name}.safetensors", "--like", like, "--out", "new"))
    torch.save({k: v.to("meta") for k, v in weights.items()}, root / "meta.pth")
    (root / "rubbish.pth").write_bytes(b"rubbish")
    (root / "empty.pth").write_bytes(b"")
    (root / "rubbish.safetensors").write_bytes(b"rubbish")
    for name in ("meta.pth", "rubbish.pth", "empty.pth", "rubbish.safetensors", "none.pth", "bad"):
        yield Case("rcm convert", name, ("convert", name, "--like", like, "--out", "new"))
    good = f"{like}/transformer/diffusion_pytorch_model.safetensors"
    for out in (f"{like}/new", "file", "file/new", "z" * 300, like):
        yield Case("rcm convert", f"--out {out[:40]}", ("convert", good, "--like", like, "--out", out))
    yield Case("rcm convert", "--like none", ("convert", good, "--like", "none", "--out", "new"))
    yield Case(
        "rcm convert", "--weights x", ("convert", good, "--like", like, "--out", "new", "--weights", "x")
    )


def _searches(root: Path) -> Iterator[Case]:
    RunFolder.of(root).tuned_times.parent.write_bytes(b"a file")
    for what, more in {
        f"{RELATIVE.tuned_times.parent} is a file": (), "--steps 0": ("--steps", "0"), "--steps 99": ("--steps", "99"),
        "--samples 1": ("--samples", "1"), "--samples x": ("--samples", "x"), "--params none": ("--params", "none"),
        "--params a folder": ("--params", "bad"), "--params rubbish": ("--params", "bad/text3.yaml"),
    }.items():  # fmt: skip
        yield Case("rcm tune-times", what, ("tune-times", *more))


def _disks(root: Path) -> Iterator[Case]:
    good = "student/transformer/diffusion_pytorch_model.safetensors"
    values = yaml.safe_load((root / "params.yaml").read_text())
    commands: dict[str, tuple[str, ...]] = {
        "rcm sample --out a picture": (*SAMPLE, "--out", "disk/o.png"),
        "rcm sample --out a folder": (*SAMPLE, "--out", "disk/samples"),
        "rcm convert --out": ("convert", good, "--like", "student", "--out", "disk/new"),
    }
    for stage in ("trajectories", "publish"):
        name = f"bad/{stage}.target.yaml"
        (root / name).write_text(yaml.safe_dump(_with(values, [stage, "target"], "disk/target")))
        commands[f"{stage}.target"] = ("run", stage, "--params", name)
    for what, command in commands.items():
        yield Case("disk", f"full: {what}", command, disk="full")
        yield Case("disk", f"read-only: {what}", command, disk="read-only")


def _with(values: Any, keys: list[str], value: Any) -> Any:
    first, *rest = keys
    return {**values, first: _with(values[first], rest, value) if rest else value}

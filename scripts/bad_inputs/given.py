"""Users' own inputs: teachers in folders, adapters, samples; and disks that cannot be written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from rcm_core.storage.run_folder import RunFolder
from scripts.bad_inputs.project import Case

PIPELINE = "given/pipeline"
"""Copy of the project's teacher; the teacher stage removes the original if an external one is set."""
CONFIG, WEIGHTS = "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"
Change = Callable[[Path], object]
"""A change of a copied folder."""


def write(place: str, content: bytes) -> Change:
    """Put ``content`` into the file ``place``, which may be linked."""

    def change(folder: Path) -> None:
        (folder / place).unlink(missing_ok=True)
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(content)

    return change


def edit(place: str, **values: Any) -> Change:
    """Set ``values`` in the JSON file ``place``."""
    return lambda folder: write(
        place, json.dumps(json.loads((folder / place).read_bytes()) | values).encode()
    )(folder)


def link(place: str, target: str) -> Change:
    """Put a symbolic link to ``target`` in the place of the file ``place``."""

    def change(folder: Path) -> None:
        (folder / place).unlink(missing_ok=True)
        (folder / place).symlink_to(target)

    return change


def remove(place: str) -> Change:
    """Remove the file or folder ``place``."""
    return lambda folder: (
        shutil.rmtree(folder / place) if (folder / place).is_dir() else (folder / place).unlink()
    )


def cut(place: str) -> Change:
    """Leave the first half of the file ``place``."""
    return lambda folder: write(place, (folder / place).read_bytes()[: (folder / place).stat().st_size // 2])(
        folder
    )


def tensors(place: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """Change every tensor of the safetensors file ``place``."""

    def recast(folder: Path) -> None:
        found = {name: change(value).contiguous() for name, value in load_file(folder / place).items()}
        (folder / place).unlink()
        save_file(found, folder / place, metadata={"format": "pt"})

    return recast


def fifo(place: str) -> Change:
    """Put a named pipe in the place of the file ``place``."""

    def change(folder: Path) -> None:
        (folder / place).unlink(missing_ok=True)
        os.mkfifo(folder / place)

    return change


ACCEPTED_TEACHERS: dict[str, tuple[str, Change]] = {
    "weights are NaN": (
        "the teacher stage reads headers alone; `rcm check-model` and the trajectories stage refuse it",
        tensors(WEIGHTS, lambda value: value * float("nan")),
    ),
    "hidden files": (
        "download notes and the like are no part of a pipeline, and are not copied",
        write(".cache/huggingface/download.lock", b"x"),
    ),
    "files of others": ("diffusers does not load them", write("notes.txt", b"x")),
    "a setting of another pipeline": (
        "model_index.json may hold settings of the pipeline",
        edit("model_index.json", boundary_ratio=None),
    ),
}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"
TEACHERS: dict[str, Change] = {
    "model_index.json is missing": remove("model_index.json"),
    "model_index.json is a list": write("model_index.json", b"[]"),
    "model_index.json is UTF-16": write("model_index.json", '{"a": 1}'.encode("utf-16")),
    "model_index.json: vae is a text": edit("model_index.json", vae="AutoencoderKLWan"),
    "model_index.json: vae is null": edit("model_index.json", vae=None),
    "model_index.json: vae has one entry": edit("model_index.json", vae=["diffusers"]),
    "model_index.json: vae is unknown": edit("model_index.json", vae=["diffusers", "AutoencoderTiny"]),
    "model_index.json: second transformer": edit(
        "model_index.json", transformer_2=["diffusers", "WanTransformer3DModel"]
    ),
    "model_index.json: another text encoder": edit(
        "model_index.json", text_encoder=["transformers", "CLIPTextModel"]
    ),
    "config.json is missing": remove(CONFIG),
    "config.json: num_layers is a text": edit(CONFIG, num_layers="2"),
    "config.json: num_layers is huge": edit(CONFIG, num_layers=10**9),
    "config.json: num_layers is another": edit(CONFIG, num_layers=3),
    "config.json: no heads": edit(CONFIG, num_attention_heads=0),
    "config.json: negative head": edit(CONFIG, attention_head_dim=-4),
    "config.json: patch_size is null": edit(CONFIG, patch_size=None),
    "config.json: patch_size is empty": edit(CONFIG, patch_size=[]),
    "config.json: unknown key": edit(CONFIG, hello=1),
    "config.json: quantised": edit(CONFIG, quantization_config={"quant_method": "bitsandbytes"}),
    "config.json: another class": edit(CONFIG, _class_name="SD3Transformer2DModel"),
    "weights are missing": remove(WEIGHTS),
    "weights are truncated": cut(WEIGHTS),
    "weights are an LFS pointer": write(WEIGHTS, POINTER),
    "weights are a dangling link": link(WEIGHTS, "nowhere.safetensors"),
    "weights are a link to themselves": link(WEIGHTS, "diffusion_pytorch_model.safetensors"),
    "weights are a named pipe": fifo(WEIGHTS),
    "weights are int8": tensors(WEIGHTS, lambda value: value.to(torch.int8)),
    "weights are fp8": tensors(WEIGHTS, lambda value: value.to(torch.float8_e4m3fn)),
    "weights of other shapes": tensors(WEIGHTS, lambda value: value[None]),
    "the text encoder is missing": remove("text_encoder"),
    "the text encoder has no weights": remove("text_encoder/model.safetensors"),
    "the text encoder is truncated": cut("text_encoder/model.safetensors"),
    "the text encoder's config is rubbish": write("text_encoder/config.json", b"{"),
    "the tokenizer is missing": remove("tokenizer"),
    "the tokenizer is rubbish": write("tokenizer/tokenizer.json", b"{"),
    "the VAE is missing": remove("vae"),
    "the VAE's config is a list": write("vae/config.json", b"[]"),
    "the scheduler is missing": remove("scheduler"),
    "the scheduler's config is rubbish": write("scheduler/scheduler_config.json", b"\0"),
}


ADAPTERS: dict[str, bytes] = {
    "empty": b"",
    "not Python": b"def (:\n",
    "with NUL": b"a = 1\0\n",
    "in UTF-16": "a = 1\n".encode("utf-16"),
    "that raises": b"raise RuntimeError('no')\n",
    "that exits": b"raise SystemExit(0)\n",
    "that imports what is missing": b"import nothing_of_this_name\n",
    "with a number for a function": b"from rcm_core.models.wan import *\nload_network = 3\n",
    "with a list for blocks": b"from rcm_core.models.wan import *\nblocks = 7\n",
    "with a number for a name": b"from rcm_core.models.wan import *\nnetwork_class = 7\n",
}


def list_cases(root: Path) -> Iterator[Case]:
    """Rows of teachers, adapters and samples; every input lies in a folder of its own below ``root/given``."""
    values = yaml.safe_load((root / "params.yaml").read_text())
    shutil.copytree(RunFolder.of(root).teacher_pipeline, root / PIPELINE)
    mine = with_changes(values, "teacher", mini=None, gate=None, hash=None)
    for number, (what, change) in enumerate(TEACHERS.items()):
        folder = root / f"given/teacher{number}"
        shutil.copytree(root / PIPELINE, folder)
        change(folder)
        params = f"given/teacher{number}.yaml"
        chosen = with_changes(mine, "teacher", source=str(folder.relative_to(root)))
        (root / params).write_text(yaml.safe_dump(chosen))
        yield Case("teacher folder", what, ("run", "teacher", "--params", params))
        yield Case("rcm check-model", what, ("check-model", f"given/teacher{number}"))
    for number, (what, (reason, change)) in enumerate(ACCEPTED_TEACHERS.items()):
        folder = root / f"given/good{number}"
        shutil.copytree(root / PIPELINE, folder)
        change(folder)
        chosen = with_changes(mine, "teacher", source=str(folder.relative_to(root)))
        (root / f"given/good{number}.yaml").write_text(yaml.safe_dump(chosen))
        command = ("run", "teacher", "--params", f"given/good{number}.yaml")
        yield Case("teacher folder", what, command, accepted=reason)
    for number, (what, source) in enumerate((("a file", "params.yaml"), ("missing", "none"), ("empty", ""))):
        (root / f"given/source{number}.yaml").write_text(
            yaml.safe_dump(with_changes(mine, "teacher", source=source))
        )
        yield Case("teacher folder", what, ("run", "teacher", "--params", f"given/source{number}.yaml"))
    for number, (what, content) in enumerate(ADAPTERS.items()):
        (root / f"given/adapter{number}.py").write_bytes(content)
        command = ("check-model", f"given/adapter{number}.py", "--pipeline", PIPELINE)
        yield Case("rcm check-model", f"an adapter {what}", command)
    yield Case("rcm check-model", "missing", ("check-model", "none"))
    yield Case("rcm check-model", "no --pipeline", ("check-model", "given/adapter0.py"))


def with_changes(values: Mapping[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    return {**values, name: {**values[name], **changes}}

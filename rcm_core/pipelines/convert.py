"""Conversion of raw checkpoints (Wan, Cosmos-Predict2, NVlabs/rcm) to pipelines in diffusers layout.

A checkpoint is converted completely or not at all: it must have every tensor of the network in its shape, and nothing
else except the known extras of the format.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.pipelines.folder import Layout, meta_network, network_config
from rcm_core.pipelines.quiet import without_bars
from rcm_core.storage.files import atomic_folder, require_space
from rcm_core.storage.formats import read_pickled
from rcm_core.storage.pipeline_files import pipeline_files

WRAPPERS = ("state_dict", "model", "generator")
"""Keys under which some writers put the tensors."""
PREFIXES = {"ema": "net_ema.", "net": "net."}
"""Prefixes of tensor names in checkpoints of NVlabs/rcm and Cosmos: the EMA and the network itself."""


class Raw(NamedTuple):
    """Names of the tensors of diffusers' module in a family's original files."""

    renames: tuple[tuple[str, str], ...]
    """Parts of names and their replacements, applied in this order."""
    besides: tuple[str, ...] = ()
    """Prefixes and suffixes of names that are no weights."""


def convert(layout: Layout, raw: Raw, checkpoint: Path, like: Path, out: Path, which: str | None) -> int:
    """Write ``out``, the pipeline ``like`` with the network of ``checkpoint``; return its number of parameters.

    ``which`` is "ema" or "net" for checkpoints that have both; None takes the EMA if there is one. Raises InputError if
    ``out`` exists or the tensors are not those of ``like``'s network.
    """
    if os.path.lexists(out):
        raise InputError(f"{out} exists already; name a folder that does not exist")
    if like.resolve() in out.resolve().parents:
        raise InputError(f"--out {out} lies inside --like {like}; choose a folder beside it")
    config = network_config(layout, like)
    network: Any = meta_network(layout.network_class, config)
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    found = rename(raw, select_network(read_raw(checkpoint), which, checkpoint), expected)
    wrong = sorted(
        n for n in expected.keys() | found.keys() if n not in found or expected.get(n) != list(found[n].shape)
    )
    if wrong:
        first = wrong[0]
        shape = list(found[first].shape) if first in found else "missing"
        raise InputError(
            f"{checkpoint} is not the network of {like}: {len(wrong)} tensors differ, first: {first} is {shape},"
            f" expected {expected.get(first, 'absent')}; nothing was written"
        )
    _refuse_values(found, checkpoint)
    require_space(out.parent, sum(v.numel() * v.element_size() for v in found.values()) + _besides(like))
    network.load_state_dict(found, assign=True)
    with atomic_folder(out) as folder, without_bars():
        shutil.copytree(like, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("transformer", ".*"))
        network.save_pretrained(folder / "transformer", max_shard_size="5GB")
    return sum(value.numel() for value in found.values())


def _refuse_values(found: Mapping[str, Tensor], checkpoint: Path) -> None:
    """Raise InputError for tensors that are no weights: on the meta device, quantised, or not finite."""
    for name, value in found.items():
        if value.is_meta:
            raise InputError(f"{checkpoint}: {name} is on the meta device, without values; save the weights")
        if value.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            raise InputError(
                f"{checkpoint}: {name} is of type {value.dtype}, quantised or no weight; expected float32, float16 or"
                " bfloat16: convert the unquantised checkpoint"
            )
        if not bool(value.isfinite().all()):
            raise InputError(
                f"{checkpoint}: {name} has values that are not finite; fetch it again, or train it again"
            )


def _besides(like: Path) -> int:
    """Return the bytes of the parts of ``like`` that are copied."""
    return sum(p.stat().st_size for n, p in pipeline_files(like).items() if not n.startswith("transformer/"))


def read_raw(checkpoint: Path) -> dict[str, Tensor]:
    """Return the tensors of a .pth, .pt or .safetensors file, or of all safetensors files of a folder; only tensors are
    unpickled.
    """
    if checkpoint.is_dir():
        paths = sorted(checkpoint.glob("*.safetensors"))
        if not paths:
            raise InputError(
                f"{checkpoint} holds no safetensors files; give a .pth, .pt or .safetensors file"
            )
        return {name: value for path in paths for name, value in _safetensors(path).items()}
    if not checkpoint.is_file():
        raise InputError(
            f"{checkpoint} does not exist; give a .pth, .pt or .safetensors file, or their folder"
        )
    if checkpoint.suffix == ".safetensors":
        return _safetensors(checkpoint)
    content: Any = read_pickled(
        checkpoint, str(checkpoint), "fetch it again, or save its tensors alone", mmap=True
    )
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise InputError(f"{checkpoint} holds a {type(content).__name__}; expected tensors by name")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error}); fetch it again") from error


def select_network(weights: Mapping[str, Tensor], which: str | None, where: Path) -> dict[str, Tensor]:
    """Return the network ``which`` of ``weights`` without its prefix; all weights if no name has one."""
    present = [key for key, prefix in PREFIXES.items() if any(name.startswith(prefix) for name in weights)]
    if not present and which is None:
        return dict(weights)
    which = which or present[0]
    if which not in present:
        raise InputError(
            f"{where} holds no weights called {PREFIXES[which]}*, it has {' and '.join(present) or 'no prefix'};"
            " set --weights to what it has, or leave it out"
        )
    prefix = PREFIXES[which]
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def rename(raw: Raw, weights: Mapping[str, Tensor], expected: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Return ``weights`` under diffusers' names; a linear layer over patches becomes the equivalent convolution."""
    renamed = {}
    for name, value in weights.items():
        if name.startswith(raw.besides) or name.endswith(raw.besides):
            continue
        for old, new in raw.renames:
            name = name.replace(old, new)
        shape = expected.get(name, [])
        flat = value.ndim == 2 and len(shape) == 5 and value.numel() == torch.Size(shape).numel()
        renamed[name] = value.reshape(shape) if flat else value
    return renamed

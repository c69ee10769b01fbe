"""Headers of the weight files of a part of a pipeline: names, shapes and dtypes of tensors. No weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from rcm_core.errors import InputError
from rcm_core.storage.formats import read_object

NETWORK, ENCODER = "diffusion_pytorch_model", "model"
"""Stems of weight files: of diffusers' modules, and of transformers' models."""
FLOATS = ("F64", "F32", "F16", "BF16")
WHOLE_NUMBERS = ("I64", "I32", "BOOL")
"""Integer dtypes that buffers of text encoders and VAEs may have; those of quantised weights are shorter."""
POINTER = b"version https://git-lfs"


class Header(NamedTuple):
    """One tensor of a safetensors file."""

    shape: list[int]
    dtype: str
    """Dtype by its name in safetensors: F32, BF16, F8_E4M3, ..."""


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in ``folder/name``; InputError if there is none."""
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder} holds no {name}; expected a pipeline in diffusers layout")
    refuse_pointer(path)
    return read_object(path, "fetch the teacher again")


def read_headers(folder: Path, name: str) -> dict[str, Header]:
    """Return the headers of all tensors of the part ``folder``, whose weight files are called ``name``.

    Raises InputError if it has no weights, or a file is missing, truncated, a git-lfs pointer or not as the index says.
    """
    tensors: dict[str, Header] = {}
    by_file = {path.name: _read_header(path) for path in weight_files(folder, name)}
    for headers in by_file.values():
        tensors |= headers
    for tensor, file in _weight_map(folder, name).items() if len(by_file) > 1 else ():
        if tensor not in by_file[file]:
            raise InputError(
                f"{folder / _index(name)} says that {file} holds {tensor}, but it does not; fetch the teacher again"
            )
    return tensors


def weight_files(folder: Path, name: str) -> list[Path]:
    """Return the weight files of the part ``folder``: the only one, or those that its index names.

    Raises InputError if one is missing or there are none.
    """
    whole, index = folder / f"{name}.safetensors", folder / _index(name)
    if whole.is_file() and (name == ENCODER or not index.is_file()):  # as transformers and diffusers choose
        return [whole]
    if not index.is_file():
        raise InputError(_without_weights(folder, name))
    files = sorted(set(_weight_map(folder, name).values()))
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of the {len(files)} shards that its index names, first: {missing[0]};"
            " fetch the teacher again"
        )
    return [folder / file for file in files]


def variants(files: Iterable[str], name: str) -> list[str]:
    """Return the variants (``fp16``, ``bf16``, ...) of the weights called ``name`` among ``files`` of one folder."""
    form = re.compile(
        rf"{name}\.([\w-]+?)(-\d+-of-\d+)?\.safetensors|{name}\.safetensors\.index\.([\w-]+)\.json"
    )
    matches = (form.fullmatch(file) for file in files)
    return sorted({match[1] or match[3] for match in matches if match})


def refuse_dtypes(headers: dict[str, Header], allowed: Iterable[str], where: Path) -> None:
    """Raise InputError if a tensor of ``where`` has a dtype that is not ``allowed``: quantised, or 8-bit floats."""
    wrong = sorted(name for name, header in headers.items() if header.dtype not in allowed)
    if wrong:
        raise InputError(
            f"{where} has {len(wrong)} tensors in {headers[wrong[0]].dtype}, first: {wrong[0]}; quantised and 8-bit"
            " weights cannot be distilled: export the teacher in float32, float16 or bfloat16"
        )


def refuse_pointer(path: Path) -> None:
    """Raise InputError if ``path`` is a git-lfs pointer."""
    with path.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise InputError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull` there")


def _read_header(path: Path) -> dict[str, Header]:
    refuse_pointer(path)
    try:
        with safe_open(path, "pt") as stream:
            slices = {name: stream.get_slice(name) for name in stream.keys()}  # noqa: SIM118
            return {name: Header(part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a safetensors file ({error}); fetch it again") from error


def _index(name: str) -> str:
    return f"{name}.safetensors.index.json"


def _weight_map(folder: Path, name: str) -> dict[str, str]:
    named = read_part(folder, _index(name)).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise InputError(f"{folder / _index(name)} has no weight_map; fetch the teacher again")
    wrong = [file for file in named.values() if not isinstance(file, str) or Path(file).name != file]
    if wrong:
        raise InputError(
            f"{folder / _index(name)} names {wrong[0]!r} as a shard; expected names of files beside it:"
            " fetch the teacher again"
        )
    return named


def _without_weights(folder: Path, name: str) -> str:
    files = [path.name for path in folder.iterdir()]
    said = f"{folder} holds no weights; expected {name}.safetensors or {_index(name)}"
    if found := variants(files, name):
        return f"{said}, there is only the variant {' and '.join(found)}: set teacher.variant to {found[0]}"
    if pickled := sorted(file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))):
        return f"{said}, there is only {pickled[0]}: export the teacher with safe_serialization=True"
    return f"{said}: fetch the teacher again"

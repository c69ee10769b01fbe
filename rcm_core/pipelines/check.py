"""Checks that a folder is a complete pipeline: every part that a later stage loads, without reading a weight.

Of weight files the headers are read, networks are built on the meta device; tokenizers and schedulers are read whole.
Each defect is one InputError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from rcm_core.errors import InputError, named_line
from rcm_core.pipelines.folder import (
    FAILURES,
    Encoder,
    Layout,
    check_tensors,
    network_config,
    refuse_config,
    vae_name,
)
from rcm_core.pipelines.headers import (
    ENCODER,
    FLOATS,
    NETWORK,
    WHOLE_NUMBERS,
    read_headers,
    read_part,
    refuse_dtypes,
    refuse_pointer,
)
from rcm_core.pipelines.quiet import without_bars
from rcm_core.storage.pipeline_files import pipeline_files

OPTIONAL = ("transformer_2", "image_encoder", "image_processor", "feature_extractor", "safety_checker")
"""Parts that may be absent: model_index.json names them as [null, null]."""


def check_pipeline(layout: Layout, folder: Path) -> dict[str, Any]:
    """Return the network's config; InputError unless ``folder`` is a complete pipeline of the family of ``layout``.

    Checked: entries of model_index.json; that every file can be read; that the network has exactly the tensors of its
    config.json; text encoders, their classes, widths and tokenizers; the VAE; the scheduler. No weight is read.
    """
    config = check_parts(layout, folder)
    _check_scheduler(folder)
    return config


def check_parts(layout: Layout, folder: Path) -> dict[str, Any]:
    """Do ``check_pipeline`` without the scheduler: the parts shared by student and teacher, and the network."""
    config = network_config(layout, folder)
    index = read_part(folder, "model_index.json")
    lacking = [part for part in layout.parts if not (folder / part).is_dir()]
    if lacking:
        raise InputError(
            f"{folder} lacks {', '.join(lacking)}; expected a complete pipeline of family {layout.family} in diffusers"
            " layout"
        )
    _check_index(layout, folder, index)
    vae_name(layout, folder)
    pipeline_files(folder)
    check_tensors(layout, folder)
    with _quiet():
        for encoder in layout.encoders:
            if (folder / encoder.part).is_dir():
                _check_encoder(folder, encoder, config)
        empty_vae(layout, folder)
    return config


def empty_vae(layout: Layout, folder: Path) -> nn.Module:
    """Return the VAE of ``folder`` on the meta device; InputError unless its files have all tensors of its config."""
    import diffusers

    from rcm_core.pixels import PixelSpace

    name, place = vae_name(layout, folder), folder / "vae"
    config = read_part(folder, "vae/config.json")
    if config.get("_class_name") != name:
        raise InputError(
            f"{folder}/model_index.json names the VAE {name}, but vae/config.json is of a {config.get('_class_name')};"
            " fetch the teacher again"
        )
    kind: Any = PixelSpace if name == "PixelSpace" else getattr(diffusers, name)
    refuse_config(kind, config)
    refuse_dtypes(read_headers(place, NETWORK), (*FLOATS, *WHOLE_NUMBERS), place)
    with _said_of(place):
        vae, loading = kind.from_pretrained(
            place, local_files_only=True, device_map={"": "meta"}, output_loading_info=True
        )
    _refuse_missing(place, loading)
    network: nn.Module = vae.eval()
    return network


def _check_index(layout: Layout, folder: Path, index: dict[str, Any]) -> None:
    """Raise InputError for entries of model_index.json that diffusers cannot read, or that name absent parts."""
    encoders = {name for encoder in layout.encoders for name in (encoder.part, encoder.tokenizer)}
    for name in sorted({*layout.parts, *OPTIONAL, *encoders, *index}):
        entry, required = index.get(name), name in layout.parts
        if name.startswith("_") or not (required or name in index):
            continue
        if not isinstance(entry, list) and name not in {*layout.parts, *OPTIONAL, *encoders}:
            continue  # a setting of the pipeline, such as boundary_ratio
        words = entry if isinstance(entry, list) and len(entry) == 2 else [0, 0]
        named = all(isinstance(word, str) for word in words)
        if not named and (required or words != [None, None]):
            raise InputError(
                f"{folder}/model_index.json has {name} = {json.dumps(entry)[:80]}; expected [library, class]"
                f"{'' if required else ' or [null, null]'}: fetch the teacher again"
            )
        if named and name not in encoders - set(layout.parts) and not (folder / name).is_dir():
            raise InputError(
                f"{folder} lacks {name}, which its model_index.json names; fetch the teacher again"
            )


def _refuse_other_class(folder: Path, encoder: Encoder, expected: str) -> None:
    """Raise InputError if model_index.json makes diffusers load ``encoder`` as another type than ``expected``."""
    import transformers

    entry = read_part(folder, "model_index.json").get(encoder.part)
    named = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    kind = getattr(transformers, named, None) if isinstance(named, str) else None
    if named is not None and getattr(getattr(kind, "config_class", None), "model_type", None) != expected:
        raise InputError(
            f"{folder}/model_index.json names {encoder.part} {named}, but this family loads a {encoder.kind}"
            f" ({expected}); fetch the teacher again"
        )


def _check_encoder(folder: Path, encoder: Encoder, network: dict[str, Any]) -> None:
    """Raise InputError unless ``encoder`` and its tokenizer are complete, of the class that the codec loads, and of the
    width that the ``network`` takes.
    """
    import transformers

    place, kind = folder / encoder.part, getattr(transformers, encoder.kind)
    config = read_part(folder, f"{encoder.part}/config.json")
    if config.get("quantization_config") is not None:
        raise InputError(
            f"{place}/config.json has a quantization_config, but quantised text encoders cannot be loaded here; take"
            " the unquantised one"
        )
    found, expected = config.get("model_type", kind.config_class.model_type), kind.config_class.model_type
    _refuse_other_class(folder, encoder, expected)
    if found != expected:
        raise InputError(
            f"{place} holds a text encoder of the type {found}, but this family loads a {encoder.kind} ({expected});"
            " put the pipeline's own text encoder there"
        )
    refuse_dtypes(read_headers(place, ENCODER), (*FLOATS, *WHOLE_NUMBERS), place)
    with _said_of(place):
        model, loading = kind.from_pretrained(
            place,
            local_files_only=True,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        text = model.config.get_text_config()
        width, vocabulary = text.hidden_size, text.vocab_size
    _refuse_missing(place, loading)
    if encoder.width is not None and network.get(encoder.width) != width:
        raise InputError(
            f"{place} gives text {width} wide, but the network takes {network.get(encoder.width)} ({encoder.width} of"
            " transformer/config.json); put the pipeline's own text encoder there"
        )
    _check_tokenizer(folder / encoder.tokenizer, vocabulary)


def _check_tokenizer(place: Path, vocabulary: int) -> None:
    """Raise InputError unless the tokenizer in ``place`` loads, can pad, and has no tokens beyond the encoder's."""
    from transformers import AutoTokenizer

    if not place.is_dir():
        raise InputError(
            f"{place} is missing, the tokenizer of a text encoder that is there; fetch the teacher again"
        )
    for path in place.glob("*.json"):
        refuse_pointer(path)
        try:
            json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON ({error}); fetch the teacher again") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        count, padding = len(tokenizer), tokenizer.pad_token_id
    except Exception as error:  # the tokenizers library raises Exception itself
        raise InputError(
            f"{place} holds no tokenizer ({named_line(error)}); fetch the teacher again"
        ) from error
    if count > vocabulary:
        raise InputError(
            f"the tokenizer in {place} has {count} tokens, but its text encoder knows {vocabulary}; they are not of one"
            " pipeline: fetch the teacher again"
        )
    if padding is None:
        raise InputError(f"the tokenizer in {place} has no padding token; fetch the teacher again")


def _check_scheduler(folder: Path) -> None:
    """Raise InputError unless the scheduler's configuration builds a scheduler of diffusers."""
    import diffusers

    config = read_part(folder, "scheduler/scheduler_config.json")
    name = config.get("_class_name")
    kind = getattr(diffusers, name, None) if isinstance(name, str) else None
    if kind is None or not hasattr(kind, "from_config"):
        raise InputError(
            f"{folder}/scheduler/scheduler_config.json names the class {name!r}, which diffusers does not have;"
            " fetch the teacher again"
        )
    with _said_of(folder / "scheduler"), _quiet():
        kind.from_config(config)


def _refuse_missing(place: Path, loading: dict[str, Any]) -> None:
    """Raise InputError if ``loading``, the report of a loader, has tensors that are missing or of another shape."""
    wrong = [f"{name} is missing" for name in sorted(loading["missing_keys"])]
    for name, found, expected in sorted(loading["mismatched_keys"], key=lambda item: str(item[0])):
        wrong.append(f"{name} is {list(found)}, expected {list(expected)}")
    if wrong:
        raise InputError(
            f"{place} differs from its config.json in {len(wrong)} tensors, first: {wrong[0]}; fetch the teacher again"
        )


@contextmanager
def _said_of(place: Path) -> Iterator[None]:
    """Turn the exceptions of loaders into one sentence about ``place``."""
    try:
        yield
    except FAILURES as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{place} cannot be loaded ({named_line(error)}); fetch the teacher again"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the loaders' progress bars and warnings; their errors are raised."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    before = of_diffusers.get_verbosity(), of_transformers.get_verbosity()
    of_diffusers.set_verbosity_error()
    of_transformers.set_verbosity_error()
    try:
        with without_bars():
            yield
    finally:
        of_diffusers.set_verbosity(before[0])
        of_transformers.set_verbosity(before[1])

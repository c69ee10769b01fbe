"""Pipelines in diffusers layout: what a folder says of itself, checked before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from rcm_core.errors import InputError
from rcm_core.formats import read_object

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"


class Layout(NamedTuple):
    """What a family expects of a pipeline's folder."""

    family: str
    network_class: str
    parts: tuple[str, ...]
    """Folders that must be there."""
    vaes: tuple[tuple[str, str], ...]
    """Library and class of the VAEs that the family's codec knows, as in model_index.json."""


def check_pipeline(layout: Layout, folder: Path) -> dict[str, Any]:
    """The network's config; InputError unless ``folder`` is a whole pipeline of this family whose network has
    exactly the tensors that its config.json asks for. Reads headers only.
    """
    config = network_config(layout, folder)
    read_part(folder, "model_index.json")
    lacking = [part for part in layout.parts if not (folder / part).is_dir()]
    if lacking:
        raise InputError(
            f"{folder} lacks {', '.join(lacking)}; expected a whole pipeline of family {layout.family} in diffusers"
            " layout"
        )
    vae_name(layout, folder)
    check_tensors(layout, folder)
    return config


def network_config(layout: Layout, folder: Path) -> dict[str, Any]:
    """The network's config; InputError unless ``folder/transformer`` holds this family's network."""
    config = read_part(folder, "transformer/config.json")
    found = config.get("_class_name")
    if found != layout.network_class:
        raise InputError(
            f"{folder} holds a {found}, but family {layout.family} needs a {layout.network_class};"
            " set teacher.family to the family of that network"
        )
    return config


def vae_name(layout: Layout, folder: Path) -> str:
    """Class name of the VAE that model_index.json names; InputError if the family's codec does not know it."""
    library, name = read_part(folder, "model_index.json").get("vae", [None, None])
    if (library, name) not in layout.vaes:
        raise InputError(
            f"{folder}/model_index.json names the VAE {library}.{name}; family {layout.family} knows"
            f" {', '.join(sorted('.'.join(k) for k in layout.vaes))}"
        )
    return str(name)


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in ``folder/name``; InputError if there is none."""
    if not (folder / name).is_file():
        raise InputError(f"{folder} holds no {name}; expected a pipeline in diffusers layout")
    return read_object(folder / name, "fetch the teacher again")


def meta_network(network_class: str, config: Mapping[str, Any]) -> nn.Module:
    """The network of ``config`` on the meta device: all shapes, no memory."""
    import diffusers

    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, network_class).from_config(dict(config))
    return network


def check_tensors(layout: Layout, folder: Path) -> None:
    """InputError unless ``folder/transformer`` is this family's network with exactly the tensors of its config."""
    network = meta_network(layout.network_class, network_config(layout, folder))
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    found: dict[str, list[int]] = {}
    for path in shards(folder / "transformer"):
        try:
            with safe_open(path, "pt") as stream:
                found |= {name: stream.get_slice(name).get_shape() for name in stream.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file ({error}); fetch it again") from error
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if wrong:
        first = wrong[0]
        raise InputError(
            f"{folder / 'transformer'} differs from its config.json in {len(wrong)} tensors, first: {first} is"
            f" {found.get(first, 'missing')}, expected {expected.get(first, 'absent')}; export the teacher again"
        )


def shards(folder: Path) -> list[Path]:
    """The files of the network in ``folder``: those that its index names, or the only one; InputError if one is
    missing.
    """
    if not (folder / INDEX).is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    named = read_part(folder, INDEX).get("weight_map")
    if not isinstance(named, dict):
        raise InputError(f"{folder / INDEX} has no weight_map; fetch the teacher again")
    paths = [folder / str(name) for name in sorted(set(named.values()))]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of the {len(paths)} shards that its index names, first: {missing[0]};"
            " fetch the teacher again"
        )
    return paths


def empty_transformer(layout: Layout, folder: Path) -> nn.Module:
    """The network of ``folder`` without weights, in eval mode: parameters on the meta device, buffers as they are."""
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network: nn.Module = getattr(diffusers, layout.network_class).from_config(
            network_config(layout, folder)
        )
    return network.eval()


def load_transformer(layout: Layout, folder: Path) -> nn.Module:
    """The network in ``folder/transformer``, float32, in eval mode; InputError unless it is this family's, whole."""
    import diffusers

    check_tensors(layout, folder)
    kind = getattr(diffusers, layout.network_class)
    network: nn.Module = kind.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    return network.eval()

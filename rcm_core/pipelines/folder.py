"""Networks of pipelines in diffusers layout: a folder's configurations, checked before any weight is read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from rcm_core.errors import InputError, named_line
from rcm_core.networks.weights import fill
from rcm_core.pipelines.headers import FLOATS, NETWORK, read_headers, refuse_dtypes, weight_files
from rcm_core.pipelines.headers import read_part as read_part

MOST_LAYERS = 1000
"""Most layers of a network: more would take hours to build, and no published network has them."""
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError, SafetensorError,
    StrictDataclassError, TypeError, ValueError,
)  # fmt: skip
"""Exceptions of diffusers and transformers for wrong files and configurations."""


class Encoder(NamedTuple):
    """A text encoder that a family's codec loads."""

    part: str
    kind: str
    """Class name in transformers."""
    width: str | None = None
    """Key of the network's configuration that must be the encoder's width."""

    @property
    def tokenizer(self) -> str:
        """Name of the part that has its tokenizer."""
        return self.part.replace("text_encoder", "tokenizer")


class Layout(NamedTuple):
    """Layout of a family's pipeline folder."""

    family: str
    network_class: str
    parts: tuple[str, ...]
    """Names of the required folders."""
    vaes: tuple[tuple[str, str], ...]
    """Library and class of the VAEs that the family's codec supports, as in model_index.json."""
    encoders: tuple[Encoder, ...] = ()
    """Text encoders that the codec loads; those not among ``parts`` may be absent."""


def network_config(layout: Layout, folder: Path) -> dict[str, Any]:
    """Return the network's config; InputError unless ``folder/transformer`` holds this family's network."""
    config = read_part(folder, "transformer/config.json")
    name = config.get("_class_name")
    if name != layout.network_class:
        raise InputError(
            f"{folder} holds a {name}, but family {layout.family} needs a {layout.network_class};"
            " set teacher.family to the family of that network"
        )
    return config


def vae_name(layout: Layout, folder: Path) -> str:
    """Return the class name of the VAE in model_index.json; InputError if the family's codec does not support it."""
    entry = read_part(folder, "model_index.json").get("vae")
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        raise InputError(
            f"{folder}/model_index.json names the VAE as {entry!r}; expected [library, class]: fetch the teacher again"
        )
    library, name = entry
    if (library, name) not in layout.vaes:
        raise InputError(
            f"{folder}/model_index.json names the VAE {library}.{name}; family {layout.family} knows"
            f" {', '.join(sorted('.'.join(k) for k in layout.vaes))}"
        )
    return str(name)


def meta_network(network_class: str, config: Mapping[str, Any]) -> nn.Module:
    """Build the network of ``config`` on the meta device: all shapes, no memory.

    Raises InputError if diffusers cannot build it, does not know one of its keys, or would drop activations at random.
    """
    import diffusers

    kind = getattr(diffusers, network_class)
    refuse_config(kind, config)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # for layers without elements; the configuration fails on them later
            network: nn.Module = kind.from_config(dict(config))
    except FAILURES as error:
        raise InputError(
            f"the configuration of the {network_class} builds no network ({named_line(error)}); correct"
            " transformer/config.json, or export the teacher again"
        ) from error
    refuse_dropout(network, config)
    return network


def refuse_config(kind: Any, config: Mapping[str, Any]) -> None:
    """Raise InputError if ``config`` is quantised, has too many layers, or keys that diffusers' ``kind`` lacks."""
    if config.get("quantization_config") is not None:
        raise InputError(
            f"the configuration of the {kind.__name__} has a quantization_config, but quantised networks cannot be"
            " distilled; export the teacher unquantised, or remove the key if its weights are plain floats"
        )
    known = signature(kind.__init__).parameters
    unknown = sorted(k for k, v in config.items() if k not in known and k[:1] != "_" and v is not None)
    unknown = [key for key in unknown if key != "quantization_config"]
    if unknown:
        raise InputError(
            f"the configuration of the {kind.__name__} has {', '.join(unknown)}, which the installed diffusers does not"
            " know and would ignore; upgrade diffusers, or remove the key if it means nothing"
        )
    for key, value in config.items():
        if "layers" in key and isinstance(value, int) and value > MOST_LAYERS:
            raise InputError(
                f"the configuration of the {kind.__name__} has {key} = {value}; expected at most"
                f" {MOST_LAYERS}: correct it"
            )


def refuse_dropout(network: nn.Module, config: Mapping[str, Any]) -> None:
    """Raise InputError if ``network`` has dropout: two passes at one state would differ."""
    named = {key: value for key, value in config.items() if "dropout" in key and value}
    inside = {name: m.p for name, m in network.named_modules() if isinstance(m, _DropoutNd) and m.p}
    for name, rate in (named or inside).items():
        raise InputError(
            f"the configuration of the {type(network).__name__} has dropout ({name} = {rate}), with which two passes at"
            " one state differ; set it to 0 in transformer/config.json: dropout has no weights"
        )


def check_tensors(layout: Layout, folder: Path) -> None:
    """Raise InputError unless ``folder/transformer`` is this family's network with exactly its config's tensors."""
    network = meta_network(layout.network_class, network_config(layout, folder))
    headers = read_headers(folder / "transformer", NETWORK)
    refuse_dtypes(headers, FLOATS, folder / "transformer")
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    found = {name: header.shape for name, header in headers.items()}
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if wrong:
        first = wrong[0]
        raise InputError(
            f"{folder / 'transformer'} differs from its config.json in {len(wrong)} tensors, first: {first} is"
            f" {found.get(first, 'missing')}, expected {expected.get(first, 'absent')}; export the teacher again"
        )


def empty_transformer(layout: Layout, folder: Path) -> nn.Module:
    """Return the network of ``folder`` without weights, in eval mode: parameters on the meta device, real buffers."""
    import diffusers
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network: nn.Module = getattr(diffusers, layout.network_class).from_config(
            network_config(layout, folder)
        )
    return network.eval()


def load_transformer(layout: Layout, folder: Path) -> nn.Module:
    """Return the network in ``folder/transformer`` in eval mode, as ``weights.loading`` sets (else float32 on the CPU).

    Raises InputError unless it is this family's network and complete.
    """
    check_tensors(layout, folder)
    return fill(empty_transformer(layout, folder), weight_files(folder / "transformer", NETWORK))

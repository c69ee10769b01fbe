"""A teacher in a plan: its configuration and the sizes of its inputs. No weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rcm_core.config.sections import TeacherSection
from rcm_core.errors import InputError, nearest
from rcm_core.pipelines.folder import meta_network, read_part
from rcm_core.pipelines.mini import build_network
from rcm_core.pipelines.shape_check import check_shape
from rcm_core.protocols import Condition, Family
from rcm_core.registry import find_family

PUBLISHED = Path("data/models")
DEPTH = "num_layers"
"""Keys of the number of blocks in a network's configuration."""


class Model(NamedTuple):
    """A teacher as described by its configuration."""

    name: str
    family: Family
    config: Mapping[str, Any]
    shape: tuple[int, ...]
    """Latent channels, frames, height, width."""
    text: int
    """Tokens of a prompt."""

    @property
    def blocks(self) -> int:
        return int(self.config[DEPTH])

    def cut(self, blocks: int) -> Model:
        """Return the model with this number of blocks."""
        return self._replace(config={**self.config, DEPTH: blocks})

    def parameters(self) -> int:
        """Number of blocks of the network."""
        return sum(p.numel() for p in self.on_meta().parameters())

    def on_meta(self) -> nn.Module:
        return meta_network(self.family.network_class, self.config)

    def conditions(self, size: int) -> Condition:
        """Return the condition of ``size`` prompts of full length."""
        _, short = self.family.example(self.config, size, torch.Generator().manual_seed(0))
        count = short["text"].shape[1]
        return {name: self._lengthen(value, count) for name, value in short.items()}

    def _lengthen(self, value: Tensor, count: int) -> Tensor:
        by_token = value.ndim > 1 and value.shape[1] == count
        return value.new_zeros(len(value), self.text, *value.shape[2:]) if by_token else value


def model_of(teacher: TeacherSection, root: Path) -> Model:
    """The teacher that the params name: a published configuration (its name in data/models), ``mini``, or a folder.

    InputError if there is none, or if it is of another family.
    """
    family = find_family(teacher.family)
    known = read_published(root)
    if teacher.source in known:
        facts = known[teacher.source]
        config, text = facts["config"], facts["text"][0]
    elif teacher.source == "mini" and teacher.mini is not None:
        config, text = _mini(teacher), teacher.mini.text_length
    else:
        folder = root / teacher.source
        if not folder.is_dir():
            raise InputError(
                f"teacher {teacher.source!r}{nearest(teacher.source, known)} is neither a folder nor a published"
                f" network; give a folder with transformer/config.json, or one of {', '.join(known)}"
            )
        config = read_part(folder, "transformer/config.json")
        text = _text_length(folder, teacher.family, known)
    if config.get("_class_name") != family.network_class:
        raise InputError(
            f"{teacher.source} is a {config.get('_class_name')}, but family {teacher.family} needs a"
            f" {family.network_class}; set teacher.family to the family of that network"
        )
    check_shape(family, config, teacher.shape, teacher.source)
    return Model(teacher.source, family, config, teacher.shape, text)


def read_published(root: Path) -> dict[str, dict[str, Any]]:
    """Return the facts of data/models by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((root / PUBLISHED).glob("*.json"))}


def _mini(teacher: TeacherSection) -> dict[str, Any]:
    mini = teacher.mini
    assert mini is not None
    with torch.device("meta"):
        network: Any = build_network(
            teacher.shape[0], mini.heads, mini.head_dim, mini.layers, mini.ffn_dim, mini.text_dim, mini.patch
        )
    return {"_class_name": type(network).__name__, **network.config}


def _text_length(folder: Path, family: str, known: Mapping[str, Any]) -> int:
    """Return the text length of the family's published networks, or the tokenizer's limit if that is less."""
    own = next((facts["text"][0] for facts in known.values() if facts["family"] == family), None)
    place = folder / "tokenizer/tokenizer_config.json"
    most = json.loads(place.read_text()).get("model_max_length") if place.is_file() else None
    lengths = [int(n) for n in (own, most) if n is not None]
    if not lengths:
        raise InputError(f"{folder} has no tokenizer that says how long a prompt may be; expected {place}")
    return min(lengths)

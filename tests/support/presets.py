"""The presets in conf/method that are for the embedded teachers; the others are published recipes of these methods."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from infra.params import bases_of
from rcm_core.registry import available

CONF = Path(__file__).parents[2] / "conf" / "method"
VARIANTS = ("dmd2-gan",)


def preset(name: str) -> dict[str, Any]:
    """Return the whole Hydra group option, merged into the presets named in its ``defaults``."""
    own: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    own.pop("defaults", None)
    inherited = [preset(base) for base in bases_of(CONF / f"{name}.yaml")]
    whole: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(*inherited, own))  # type: ignore[assignment]
    return whole


EMBEDDED = sorted((*available("methods"), *VARIANTS))
RECIPES = ("rcm-mini",)
"""Presets for one embedded teacher."""
PRESETS = sorted(path.stem for path in CONF.glob("*.yaml"))
PUBLISHED = sorted(set(PRESETS) - {*EMBEDDED, *RECIPES})
LEAF = re.compile(r"^( *)(\w+): +([^#\s].*)$")


def comments(name: str) -> dict[str, str]:
    """Return dotted key -> comment (behind and above the line) for every line of a preset that sets a value.

    A mapping within a line has its keys' comment. A value that the preset inherits has the comment of its base.
    """
    found: dict[str, str] = {}
    for base in bases_of(CONF / f"{name}.yaml"):
        found |= comments(base)
    above: list[str] = []
    parents: list[str] = []
    for line in (CONF / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        bare = line.strip()
        if bare.startswith("#"):
            above.append(bare)
            continue
        leaf = LEAF.match(line)
        if leaf is not None:
            depth = len(leaf[1]) // 2
            value, _, after = leaf[3].partition("  #") if "  #" in leaf[3] else leaf[3].partition(" #")
            key = ".".join([*parents[:depth], leaf[2]])
            inner = yaml.safe_load(value)
            keys = [f"{key}.{k}" for k in inner] if isinstance(inner, dict) else [key]
            found |= dict.fromkeys(keys, " ".join([*above, after]))
        elif bare.partition("#")[0].strip().endswith(":"):
            depth = (len(line) - len(line.lstrip())) // 2
            parents = [*parents[:depth], bare.partition(":")[0]]
        above = []
    return found


def comment_of(name: str, key: str) -> str:
    """Return the comment of ``key``, or of the mapping that contains it."""
    found = comments(name)
    return found[key] if key in found else found[f"{key}.student"]

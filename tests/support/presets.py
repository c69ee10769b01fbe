"""The presets in conf/method that are for the embedded teachers; the others are published recipes of these methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rcm_core.registry import available

CONF = Path(__file__).parents[2] / "conf" / "method"
VARIANTS = ("dmd2-gan",)


def preset(name: str) -> dict[str, Any]:
    """The whole Hydra group option."""
    content: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return content


EMBEDDED = sorted((*available("methods"), *VARIANTS))
PRESETS = sorted(path.stem for path in CONF.glob("*.yaml"))

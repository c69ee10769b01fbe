"""How large the Ray that this process has joined is, or may become."""

from __future__ import annotations

import os
import re

from rcm_core.errors import InputError

LARGEST = "RCM_RAY_CAPACITY"
KINDS = ("CPU", "GPU")


def capacity() -> dict[str, int]:
    """CPUs and GPUs of the present nodes, or those of ``RCM_RAY_CAPACITY`` (``CPU=96,GPU=64``) if they are more.

    A cluster that scales from zero has no GPU until one is asked for, and Ray does not say how far it may grow.
    """
    import ray

    present, largest = ray.cluster_resources(), _largest(os.environ.get(LARGEST, ""))
    return {kind: max(int(present.get(kind, 0)), largest.get(kind, 0)) for kind in KINDS}


def _largest(text: str) -> dict[str, int]:
    found = re.findall(r"(CPU|GPU)=(\d+)", text)
    if ",".join("=".join(pair) for pair in found) != text:
        raise InputError(f"{LARGEST} = {text!r}: expected what the cluster may grow to, as in CPU=96,GPU=64")
    return {kind: int(number) for kind, number in found}

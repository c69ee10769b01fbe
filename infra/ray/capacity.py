"""Present or maximum size of the Ray cluster that this process has joined."""

from __future__ import annotations

import os
import re

from rcm_core.errors import InputError

LARGEST = "RCM_RAY_CAPACITY"
KINDS = ("CPU", "GPU")


def capacity() -> dict[str, int]:
    """Return the CPUs and GPUs of the current nodes, or of ``RCM_RAY_CAPACITY`` (``CPU=96,GPU=64``) if those are more.

    A cluster that scales from zero has no GPU until one is requested, and Ray does not report its maximum size.
    """
    import ray

    present, largest = ray.cluster_resources(), _largest(os.environ.get(LARGEST, ""))
    return {kind: max(int(present.get(kind, 0)), largest.get(kind, 0)) for kind in KINDS}


def _largest(text: str) -> dict[str, int]:
    found = re.findall(r"(CPU|GPU)=(\d+)", text)
    if ",".join("=".join(pair) for pair in found) != text:
        raise InputError(f"{LARGEST} = {text!r}: expected the cluster's maximum size, as in CPU=96,GPU=64")
    return {kind: int(number) for kind, number in found}

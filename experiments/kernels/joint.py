"""Joint pass and two passes compared on a CPU, with the network of ``mini``: ``python -m experiments.kernels.joint``.

Times are medians of interleaved repetitions. Bytes are those that autograd saves for the backward pass. Writes
experiments/kernels/results/joint-cpu.json. On a GPU `make bench-gpu` has the same rows for Wan2.1-1.3B.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_core.jvp import flash_jvp, joint_jvp, jvp
from rcm_core.pipelines.mini import build_network
from rcm_core.units import MIB

RESULT = Path(__file__).parent / "results" / "joint-cpu.json"
BATCH, REPETITIONS, THREADS = 64, 15, 2


def passes() -> dict[str, Callable[[], Tensor]]:
    """Return functions for a tangent and a loss with gradient: two passes, two with checkpointing, and jointly."""
    torch.manual_seed(0)
    network = build_network(channels=1, layers=4, heads=4, head_dim=32, ffn_dim=512, text_dim=64)
    x, along = torch.randn(2, BATCH, 1, 1, 8, 8).unbind(0)
    t, s = torch.full((BATCH,), 500.0), torch.ones(BATCH)
    text = torch.randn(BATCH, 12, 64)

    def call(state: Tensor, angle: Tensor) -> Tensor:
        found: Tensor = network(state, angle, text, return_dict=False)[0]
        return found

    def two(checkpointing: bool) -> Tensor:
        network.disable_gradient_checkpointing()
        with torch.no_grad(), flash_jvp():
            jvp(call, (x, t), (along, s))
        if checkpointing:
            network.enable_gradient_checkpointing()
        return call(x, t)

    def joint() -> Tensor:
        network.disable_gradient_checkpointing()
        return joint_jvp(call, (x, t), (along, s), list(network.blocks))[0]

    network.train()
    return {
        "two passes": lambda: two(False),
        "two passes, checkpointing": lambda: two(True),
        "joint": joint,
    }


def count_saved_bytes(call: Callable[[], Tensor]) -> int:
    """Return the bytes that autograd saves for the backward pass, without parameters."""
    sizes: list[int] = []

    def pack(saved: Tensor) -> Tensor:
        if not isinstance(saved, torch.nn.Parameter):
            sizes.append(saved.nbytes)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        call()
    return sum(sizes)


def main() -> None:
    torch.set_num_threads(THREADS)
    calls = passes()
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPETITIONS + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            call().square().mean().backward()
            spent[name].append(time.perf_counter() - begin)
    result: dict[str, Any] = {
        "network": "mini, batch 64, float32", "threads": THREADS, "torch": torch.__version__,
        "repetitions": REPETITIONS,
    }  # fmt: skip
    base = statistics.median(spent["two passes"][1:])
    for name, call in calls.items():
        median = statistics.median(spent[name][1:])
        result[name] = {
            "milliseconds": 1000 * median,
            "of_two_passes": median / base,
            "kept_megabytes": count_saved_bytes(call) / MIB,
        }
    print(json.dumps(result, indent=2))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

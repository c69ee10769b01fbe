"""Time and memory of chunked attention with its tangent and of math attention under ``torch.func.jvp``, on a CPU.

``python -m experiments.kernels.cpu`` runs both alternately, several times, each in its own process, and writes
experiments/kernels/results/cpu.json. Memory is the peak resident size above that after the creation of the inputs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rcm_kernels import attention_jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as sdpa

RESULT = Path(__file__).parent / "results" / "cpu.json"
HEADS, DIM = 4, 64


def once(which: str, length: int) -> dict[str, float]:
    """Measure seconds and MiB of one call in float32."""
    rng = torch.Generator().manual_seed(0)
    q, k, v, tq, tk, tv = (torch.randn(1, HEADS, length, DIM, generator=rng) for _ in range(6))
    before = peak()
    begin = time.perf_counter()
    with torch.no_grad():
        if which == "chunked":
            attention_jvp(q, k, v, tq, tk, tv, backend="chunked")
        else:
            with sdpa_kernel(SDPBackend.MATH):
                torch.func.jvp(sdpa, (q, k, v), (tq, tk, tv))
    return {"seconds": time.perf_counter() - begin, "megabytes": peak() - before}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--only", choices=["chunked", "math"], help="measure one call in this process and print JSON"
    )
    options = parser.parse_args()
    if options.only:
        print(json.dumps(once(options.only, options.length)))
        return 0
    found: dict[str, list[dict[str, float]]] = {"chunked": [], "math": []}
    for _ in range(options.runs):
        for which, seen in found.items():
            command = [sys.executable, __file__, "--only", which, "--length", str(options.length)]
            seen.append(
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            )
    result: dict[str, Any] = {
        "shape": f"{HEADS} heads x {DIM}, {options.length} queries and keys, float32, all three tangents",
        "threads": torch.get_num_threads(), "torch": torch.__version__, "runs": options.runs,
    }  # fmt: skip
    for which, seen in found.items():
        result[which] = {key: statistics.median(s[key] for s in seen) for key in ("seconds", "megabytes")}
    result["times_faster"] = result["math"]["seconds"] / result["chunked"]["seconds"]
    print(json.dumps(result, indent=2))
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

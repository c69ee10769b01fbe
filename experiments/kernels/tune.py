"""Find the fastest tile sizes on this GPU: ``make tune-gpu`` rewrites rcm_kernels/attention_jvp/tuned.json.

Nothing is tuned at run time. The result can be committed; it is valid for the architecture it was measured on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rcm_kernels.attention_jvp import backward, configs, forward
from rcm_kernels.attention_jvp.configs import Config
from rcm_kernels.attention_jvp.problem import Options, Tangents
from torch import Tensor
from triton.compiler.errors import CompilationError
from triton.runtime.errors import OutOfResources, PTXASError

from experiments.kernels import attention
from experiments.kernels.timing import measure

TABLE = Path(configs.__file__).with_name("tuned.json")
CANDIDATES = [
    Config(m, n, warps, stages)
    for m, n, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (1, 2, 3, 4))
]


PLAIN = Options(None, 0.1, causal=False)


class Inputs(NamedTuple):
    """q, k, v, tangents, and a gradient of the output."""

    q: Tensor
    k: Tensor
    v: Tensor
    tangents: Tangents
    upstream: Tensor


def inputs(dim: int, length: int, moved: str, device: torch.device) -> Inputs:
    q, k, v, *along = attention.draws(16, length, length, dim, device)
    return Inputs(
        q, k, v, Tangents(*[x if n in moved else None for n, x in zip("qkv", along)]), torch.ones_like(q)
    )


def fastest(call: Callable[[], object], module: Any, name: str, device: torch.device) -> Config:
    """Return the candidate for ``module.name`` with the smallest median; unsupported candidates are skipped."""
    best: tuple[Config, float] | None = None
    shipped = getattr(module, name)
    for candidate in CANDIDATES:
        setattr(module, name, lambda _, chosen=candidate: chosen)
        try:
            spent = measure(call, device).milliseconds
        except (OutOfResources, PTXASError, CompilationError, RuntimeError):
            continue
        if best is None or spent < best[1]:
            best = candidate, spent
    setattr(module, name, shipped)
    if best is None:
        raise RuntimeError("no candidate runs here")
    print(f"{name}: {tuple(best[0])} {best[1]:.3f} ms", flush=True)
    return best[0]


def tune_forward(given: Inputs, device: torch.device) -> Config:
    return fastest(lambda: forward.forward(*given[:4], PLAIN), forward, "forward_config", device)


def tune_backward(given: Inputs, device: torch.device) -> Config:
    result = forward.forward(*given[:4], PLAIN)
    return fastest(
        lambda: backward.backward(*given[:3], result, given.upstream, PLAIN),
        backward,
        "backward_config",
        device,
    )


def main() -> int:
    """Tune the most frequent cases of training: self-, cross- and plain attention."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--length", type=int, default=4096)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: no CUDA device here; run the tuning on the GPU that it is for", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    table = json.loads(TABLE.read_text())
    for dim, moved in itertools.product(options.dims, ("", "q", "qkv")):
        given = inputs(dim, options.length, moved, device)
        case = configs.case_of(given.q, given.v, given.tangents, describable=True)
        found = table.setdefault(f"sm_{case.arch}", {})
        print(configs.key_of("", case))
        found[configs.key_of("forward", case)] = list(tune_forward(given, device))
        if not moved:
            found[configs.key_of("backward", case)] = list(tune_backward(given, device))
        TABLE.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

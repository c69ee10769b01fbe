"""Measurement of calls: median times by device events, and peak memory above that before the call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from rcm_core.units import MIB

MOST_RUNS = 30
SECONDS = 1.0
"""Minimum seconds of a measurement, which has at least two and at most MOST_RUNS repetitions."""


HEAD_START = 2_000_000
"""Clock ticks of the head start, about a millisecond."""


class Cost(NamedTuple):
    """Median time of a call, and its peak memory above its inputs."""

    milliseconds: float
    megabytes: float


def measure(call: Callable[[], object], device: torch.device) -> Cost:
    """Measure ``call`` after one warm-up call (compilation, choice of algorithms)."""
    if device.type != "cuda":
        return Cost(statistics.median(_wall(call) for _ in range(2)), 0.0)
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    first = _events(call)
    memory = (torch.cuda.max_memory_allocated() - before) / MIB
    runs = max(2, min(MOST_RUNS, int(1000 * SECONDS / max(first, 1e-3))))
    return Cost(statistics.median(_events(call) for _ in range(runs)), memory)


def _events(call: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(
        HEAD_START
    )  # the launches of ``call`` queue up behind it, so the device is timed and not the host
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _wall(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - begin)


def matmul_ceiling(device: torch.device, size: int) -> float:
    """Return the TFLOP/s of a square bfloat16 matrix product: this machine's practical maximum."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / measure(lambda: a @ b, device).milliseconds / 1e9

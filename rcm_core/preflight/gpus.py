"""Accelerators by name: memory, and peak floating-point operations per second."""

from __future__ import annotations

from typing import NamedTuple

from rcm_core.errors import InputError, nearest
from rcm_core.units import GIB

TERA = 1e12


class Gpu(NamedTuple):
    memory: float
    """Bytes that CUDA reports, somewhat less than the nominal memory."""
    bfloat16: float
    """Dense operations per second with float32 accumulation."""
    float32: float
    """Operations per second in float32, without tensor cores, as in training."""

    def rate(self, precision: str) -> float:
        """Return the peak operations per second in ``precision``."""
        return self.bfloat16 if precision == "bfloat16" else self.float32


# NVIDIA's datasheets: HGX B200, H200, H100 (SXM5, PCIe), A100 (SXM4), L40S, L4; Ada architecture whitepaper (RTX 4090).
# Where they give operations with sparsity, half of them.
GPUS = {
    "b200": Gpu(178 * GIB, 2250 * TERA, 75 * TERA),
    "h200": Gpu(139 * GIB, 989 * TERA, 67 * TERA),
    "h100": Gpu(79 * GIB, 989 * TERA, 67 * TERA),
    "h100-pcie": Gpu(79 * GIB, 756 * TERA, 51 * TERA),
    "a100-80gb": Gpu(79 * GIB, 312 * TERA, 19.5 * TERA),
    "a100-40gb": Gpu(39 * GIB, 312 * TERA, 19.5 * TERA),
    "l40s": Gpu(44 * GIB, 362 * TERA, 91.6 * TERA),
    "l4": Gpu(22 * GIB, 121 * TERA, 30.3 * TERA),
    "rtx-4090": Gpu(23.5 * GIB, 165 * TERA, 82.6 * TERA),
}


def gpu_of(name: str) -> Gpu:
    """Return the accelerator ``name``; if there is none, InputError suggests the nearest one."""
    if name not in GPUS:
        raise InputError(f"unknown GPU {name!r}{nearest(name, GPUS)}; known: {', '.join(GPUS)}")
    return GPUS[name]

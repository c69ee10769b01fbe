"""Compile every shipped kernel configuration ahead of time, without a GPU: ``python -m experiments.kernels.aot``.

Prints registers, spills, shared memory and matrix instructions for sm_80, 89, 90 and 100. Exit status 1 if a default
configuration for sm_90, where this is promised, spills or needs more shared memory than the architecture has.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from rcm_kernels.attention_jvp import backward, forward
from rcm_kernels.attention_jvp.configs import (
    DESCRIPTORS,
    Case,
    Config,
    backward_config,
    forward_config,
    pad_width,
)
from rcm_kernels.dispatch import LARGEST_FLOAT32
from rcm_kernels.pairs import triton_rules as pairs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

SHARED_MEMORY = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Maximum bytes of shared memory per block (CUDA programming guide, compute capabilities)."""
PROMISED = 90
LENGTH = 4096
HEADS = 16
KINDS = {"bf16": (32, 64, 72, 112, 128, 256), "fp32": (32, 64, 128)}
MOVED = ("", "q", "qkv")
"""Head dimensions of the families, and the tangents of plain, cross- and self-attention."""


def cases(arch: int) -> list[Case]:
    """Return the shipped cases for ``arch``: all by pointers, and 16-bit types by descriptors where supported."""
    return [
        Case(arch, dim, dim, kind, moved, described)
        for kind, dims in KINDS.items()
        for dim in dims
        for moved in MOVED
        for described in (False, True)
        if not described or (arch in DESCRIPTORS and kind != "fp32")
    ]


class Pointer(NamedTuple):
    kind: str


class Descriptor(NamedTuple):
    kind: str
    rows: int
    columns: int


class Usage(NamedTuple):
    """Resources of a multiprocessor that one compiled kernel needs."""

    registers: int
    spilled: int
    shared: int
    products: int


def specialise(value: Any, path: tuple[int, ...], constants: dict[Any, Any], hints: dict[Any, Any]) -> Any:
    """Return an argument's type as the launcher specialises it: 1 and None are constants, multiples of 16 hints."""
    if isinstance(value, Pointer):
        hints[path] = [["tt.divisibility", 16]]
        return f"*{value.kind}"
    if isinstance(value, Descriptor):
        return f"tensordesc<{value.kind}[1, 1, {value.rows}, {value.columns}]>"
    if isinstance(value, tuple):
        return tuple(specialise(v, (*path, i), constants, hints) for i, v in enumerate(value))
    if isinstance(value, float):
        return "fp32"
    if value is None or value == 1 or isinstance(value, str):
        constants[path] = value
        return "constexpr"
    if value % 16 == 0:
        hints[path] = [["tt.divisibility", 16]]
    return "i32"


def compile_kernel(
    kernel: Any, values: Mapping[str, Any], constants: Mapping[str, Any], config: Config, arch: int
) -> Usage:
    """Compile ``kernel`` for sm_``arch`` with arguments like ``values``."""
    fixed: dict[Any, Any] = {}
    hints: dict[Any, Any] = {}
    signature: dict[str, Any] = {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], fixed[(i,)] = "constexpr", constants[name]
        else:
            signature[name] = specialise(values[name], (i,), fixed, hints)
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=hints)
    options = {"num_warps": config.warps, "num_stages": config.stages}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    ptx = made.asm["ptx"]
    registers, spilled = assemble_usage(ptx, arch)
    products = len(re.findall(r"\bwgmma\.mma_async|\bmma\.sync|\btcgen05\.mma", ptx))
    return Usage(registers, spilled, made.metadata.shared, products)


def assemble_usage(ptx: str, arch: int) -> tuple[int, int]:
    """Return the registers and the spilled bytes that ptxas reports."""
    tool = triton.knobs.nvidia.ptxas_blackwell if arch >= 100 else triton.knobs.nvidia.ptxas
    name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [tool.path, "-v", f"--gpu-name={name}", str(path), "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", said))
    spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said))
    return registers, spilled


def strides(dim: int) -> tuple[int, int, int, int]:
    return (HEADS * LENGTH * dim, LENGTH * dim, dim, 1)


Launch = tuple[str, Any, dict[str, Any], dict[str, Any], Config]


def launches(case: Case, mask: Pointer | None = None) -> Iterator[Launch]:
    """Yield every launch of ``case``: name, kernel, arguments, constants and configuration."""
    place, wide = Pointer(case.kind), Pointer("fp32")
    dims = {"q": case.dim, "k": case.dim, "v": case.width, "g": case.width, "out": case.width}
    dims |= {"dq": case.dim, "dk": case.dim, "dv": case.width, "tangent": case.width}
    dims |= {"tq": case.dim, "tk": case.dim, "tv": case.width}
    present = {"q", "k", "v", "g", "out", "dq", "dk", "dv", *(f"t{name}" for name in case.moved)}
    if case.moved:
        present.add("tangent")
    base: dict[str, Any] = {n: place if n in present else None for n in dims}
    base |= {f"{n}_strides": strides(d) if n in present else (0, 0, 0, 0) for n, d in dims.items()}
    base |= {
        "mask": mask,
        "mask_strides": (0, 0, LENGTH, 1) if mask else (0, 0, 0, 0),
        "lengths": None,
        "lse": wide,
        "delta": wide,
    }
    base |= {"heads": HEADS, "group": 1, "row_end": LENGTH, "key_end": LENGTH, "scale": 0.1}
    constants = {
        "D": case.dim, "E": case.width, "BLOCK_D": pad_width(case.dim), "BLOCK_E": pad_width(case.width),
        "CAUSAL": False, "WHOLE": False, "PRECISION": "ieee", "WIDE": False, "DESCRIBED": case.described,
    }  # fmt: skip
    named = [("forward", forward.forward_kernel, forward_config(case))]
    if not case.moved:
        shipped = backward_config(case)
        named += [("dq", backward.query_kernel, shipped), ("dk, dv", backward.key_kernel, shipped)]
    for name, kernel, config in named:
        values = dict(base)
        if case.described:
            for n in present:
                rows = config.block_n if n[-1] in "kv" else config.block_m
                values[n] = Descriptor(case.kind, rows, pad_width(dims[n]))
        yield name, kernel, values, constants | {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}, config


def pointwise() -> Iterator[Launch]:
    """Yield launches of the fused rules at a width of 5120 with all optional arguments."""
    kind, width, tokens = Pointer("bf16"), 5120, LENGTH
    names = [
        "x", "tx", "weight", "bias", "scale", "tscale", "shift", "tshift", "h", "th", "gate", "tgate",
        "a", "ta", "b", "tb", "cos", "sin", "y", "ty",
    ]  # fmt: skip
    values: dict[str, Any] = dict.fromkeys(names, kind) | {"per": tokens, "width": width, "eps": 1e-6}
    values |= {"size": tokens * width, "tokens": tokens, "pairs": width // 2, "half": 64}
    yield "norm", pairs.norm_kernel, values, {"KIND": "layer", "WIDTH": 8192}, Config(1, 8192, 16, 1)
    yield "residual", pairs.residual_kernel, values, {"WIDTH": pairs.BLOCK}, Config(1, pairs.BLOCK, 4, 1)
    shape = {"KIND": "gelu", "WIDTH": pairs.BLOCK}
    yield "activation", pairs.activation_kernel, values, shape, Config(1, pairs.BLOCK, 4, 1)
    yield "rotary", pairs.rotary_kernel, values, {"WIDTH": pairs.BLOCK // 2}, Config(1, pairs.BLOCK, 4, 1)


def everything(arch: int) -> Iterator[tuple[Launch, str, bool]]:
    """Yield all launches for ``arch``, each with its case and whether it is a default."""
    for case in cases(arch):
        what = f"{case.dim} {case.kind} d({case.moved}){' tma' if case.described else ''}"
        default = case.kind != "fp32" or case.dim <= LARGEST_FLOAT32
        for launch in launches(case):
            yield launch, what, default
        if case.kind != "fp32" and not case.described:
            for launch in launches(case, Pointer("fp32")):
                yield launch, f"{what} mask", default
    for launch in pointwise():
        yield launch, "5120 bf16", True


def main() -> int:
    """Print a line for every kernel. Exit status 1 if one breaks its promise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", type=int, action="append", choices=SHARED_MEMORY)
    options = parser.parse_args()
    broken = 0
    print(
        f"{'arch':7}{'kernel':11}{'case':22}{'tile':18}{'registers':>9}{'spilled':>9}{'shared':>9}{'products':>9}"
    )
    for arch in options.arch or SHARED_MEMORY:
        for (name, kernel, values, constants, config), what, default in everything(arch):
            used = compile_kernel(kernel, values, constants, config, arch)
            bad = used.spilled > 0 or used.shared > SHARED_MEMORY[arch]
            broken += bad and arch == PROMISED and default
            tile = f"{config.block_m}x{config.block_n} {config.warps}w {config.stages}s"
            print(
                f"sm_{arch:<4}{name:11}{what:22}{tile:18}{used.registers:9}{used.spilled:9}{used.shared:9}"
                f"{used.products:9}{'' if default else '  not a default'}{'  spills or too large' if bad else ''}",
                flush=True,
            )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

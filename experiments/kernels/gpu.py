"""All promises about a GPU in one command: ``make bench-gpu``.

First it runs the correctness tests and stops if one fails. Then it compares attention with its tangent with the
machine's matrix product, the best plain attention, math attention under ``torch.func.jvp`` and, if installed,
jvp_flash_attention. It also measures the fused rules and a whole Wan2.1-1.3B. Writes JSON and a plot to
experiments/kernels/results. ``--smoke`` runs everything on tiny shapes on any machine and writes nothing; its times are
not meaningful.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
import triton

from experiments.kernels import attention, network, pointwise
from experiments.kernels.timing import matmul_ceiling

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHECKS = ("tests/kernels/test_gpu.py", "tests/kernels/test_properties.py", "tests/kernels/test_pairs.py")
CEILING_SIZE = 8192


def check_kernels() -> bool:
    """Return whether the kernels pass their tests on this device."""
    command = [sys.executable, "-m", "pytest", "-q", *CHECKS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-4000:], file=sys.stderr)
    return done.returncode == 0


def environment(device: torch.device) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    versions = {"torch": torch.__version__, "triton": triton.__version__, "cuda": torch.version.cuda}
    return {"device": name, **versions, "dtype": "bfloat16"}


def line(row: dict[str, Any]) -> str:
    text = (
        f"{row['kind']:6}{row['heads']:4} x {row['dim']:<5}{row['queries']:7}{row['keys']:7}"
        f"{row['milliseconds']:11.3f} ms{row['tflops']:8.0f} TFLOP/s{row['of_ceiling']:8.1%} of the ceiling"
        f"{row['times_plain']:7.2f} x {row['plain']}"
    )
    for name in ("math", "jvp_flash_attention"):
        if f"faster_than_{name}" in row:
            text += f"{row[f'faster_than_{name}']:8.1f} x faster than {name}"
    return text


def plot(rows: list[dict[str, Any]], ceiling: float, path: Path) -> None:
    """Plot TFLOP/s over length, a line for each kind and head."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for key in sorted({(r["kind"], r["heads"], r["dim"]) for r in rows}):
        chosen = [r for r in rows if (r["kind"], r["heads"], r["dim"]) == key]
        label = f"{key[0]}, {key[1]} x {key[2]}"
        axes.plot([r["queries"] for r in chosen], [r["tflops"] for r in chosen], "o-", label=label)
    axes.axhline(ceiling, color="grey", linestyle=":", label="matrix product")
    axes.set(xscale="log", xlabel="queries", ylabel="TFLOP/s", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, any machine, nothing written")
    smoke = parser.parse_args().smoke
    if not smoke and not torch.cuda.is_available():
        print(
            "error: no CUDA device here; `make bench-gpu` needs one (--smoke runs without)", file=sys.stderr
        )
        return 2
    device = torch.device("cpu" if smoke else "cuda")
    if not smoke and not check_kernels():
        print("the checks failed, so nothing is measured", file=sys.stderr)
        return 1
    facts = environment(device)
    print(json.dumps(facts))
    ceiling = matmul_ceiling(device, 64 if smoke else CEILING_SIZE)
    print(f"bfloat16 matrix product: {ceiling:.0f} TFLOP/s", flush=True)
    rows = []
    for row in attention.cases(
        device, (16, 24) if smoke else attention.LENGTHS, 8 if smoke else attention.TEXT, ceiling
    ):
        rows.append(row)
        print(line(row), flush=True)
    sizes = (16, 32, 2, 64) if smoke else (32760, 1536, 12, 8960)
    fused = pointwise.rows(*sizes, device)
    for name, found in fused.items():
        print(
            f"{name:20}{found['fused']:9.3f} ms{found['times_faster']:7.2f} x faster than forward mode",
            flush=True,
        )
    size = network.SMOKE if smoke else network.WAN_1_3B
    passes = {name: cost._asdict() for name, cost in network.costs(size, device).items()}
    base = passes["forward"]["milliseconds"]
    for name, cost in passes.items():
        print(f"{name:42}{cost['milliseconds']:10.1f} ms{cost['milliseconds'] / base:7.2f} x forward"
              f"{cost['megabytes']:10.0f} MiB", flush=True)  # fmt: skip
    parts = network.breakdown(size, device)
    for name, spent in parts.items():
        print(f"{spent:10.2f} ms  {name}")
    if not smoke:
        name = str(facts["device"]).replace(" ", "-").lower()
        folder = HERE / "results"
        folder.mkdir(exist_ok=True)
        whole = {"environment": facts, "matmul_tflops": ceiling, "attention": rows, "fused": fused,
                 "wan_1_3b": passes, "tangent_pass": parts}  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")
        plot(rows, ceiling, folder / f"{name}.svg")
        print(f"written to {folder / name}.json and .svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())

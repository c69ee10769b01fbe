"""Peak memory of two gloo ranks while they load a sharded network from a pipeline with several weight files.

    python -m experiments.engine.rank_memory --json docs/results/rank-memory.json    # 0.4 GB, two minutes on two cores

The network has Wan's blocks in float32. Each rank reports by how much its resident memory (VmHWM, which includes pages
of mapped files) rose during ``ShardingPlan.load``. The limit is the rank's own part plus the largest file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from rcm_core.config.sections import MiniTraining
from rcm_core.models import wan
from rcm_core.pipelines.mini import save_pipeline
from rcm_core.registry import find_family
from rcm_core.storage.files import json_text, write_json
from rcm_core.training.parallel.sharding import PLAIN, ShardingPlan
from rcm_core.units import MIB

WORLD = 2
SLACK = 48 * MIB
"""Additional bytes for Python, the allocator and gloo."""
CPU = torch.device("cpu")


def write_teacher(folder: Path, layers: int, width: int, shard: str) -> None:
    """Write a pipeline with a random network: ``layers`` blocks of ``width``, files of at most ``shard`` (``80MB``)."""
    settings = MiniTraining(
        layers=layers, heads=width // 128, head_dim=128, ffn_dim=4 * width, text_dim=64, text_length=12, steps=1,
        batch=1, lr=0.1, ema_length=0.1, condition_dropout=0.0, checkpoint_every=1,
    )  # fmt: skip
    save_pipeline(folder, (1, 1, 8, 8), ["the digit 7", "three"], settings, 3.0, seed=0)
    network: Any = wan.load_network(folder)
    for path in (folder / "transformer").glob("*.safetensors"):
        path.unlink()
    network.save_pretrained(folder / "transformer", max_shard_size=shard)


def measure_rank(rank: int, place: Path) -> None:
    """Measure this rank's memory while it loads the teacher in ``place``; write the result next to the teacher."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place / 'meeting'}", rank=rank, world_size=WORLD)
    spread = ShardingPlan.of(PLAIN, WORLD, CPU)
    spread.load("student", place / "tiny", find_family("wan"), CPU)  # imports everything that a load imports
    write_json(place / f"{rank}.json", load_measured(spread, place / "teacher"))
    dist.destroy_process_group()


def load_measured(spread: ShardingPlan, folder: Path) -> dict[str, int]:
    """Return the bytes of this rank's part of the network in ``folder``, and the peak rise of memory while loading."""
    dist.barrier()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    denoiser = spread.load("student", folder, find_family("wan"), CPU)
    peak = resident("VmHWM") - before
    return {"peak": peak, "part": sum(p.to_local().nbytes for p in denoiser.parameters())}  # type: ignore[attr-defined]


def resident(name: str) -> int:
    """Return the bytes of this process's memory under ``name`` in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def measure(place: Path, layers: int, width: int, shard: str) -> dict[str, Any]:
    """Measure every rank; check that it needs at most its part, the largest file and ``SLACK``."""
    write_teacher(place / "tiny", 1, 128, shard)
    write_teacher(place / "teacher", layers, width, shard)
    files = [f.stat().st_size for f in (place / "teacher/transformer").glob("*.safetensors")]
    processes.spawn(measure_rank, (place,), WORLD)  # type: ignore[no-untyped-call]
    ranks = [json.loads((place / f"{rank}.json").read_text()) for rank in range(WORLD)]
    limits = [rank["part"] + max(files) + SLACK for rank in ranks]
    return {
        "network_bytes": sum(files),
        "files": len(files),
        "largest_file_bytes": max(files),
        "ranks": [
            rank | {"limit": limit, "kept": rank["peak"] <= limit}
            for rank, limit in zip(ranks, limits, strict=True)
        ],
    }


def main() -> int:
    """Run the measurement. Exit status 0 if every rank stays within its limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--shard", default="80MB")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), given.layers, given.width, given.shard)
    print(json_text(result))
    if given.json:
        write_json(given.json, result)
    return 0 if all(rank["kept"] for rank in result["ranks"]) else 1


if __name__ == "__main__":
    sys.exit(main())

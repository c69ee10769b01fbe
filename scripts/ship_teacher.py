"""Copies the teacher that was trained here into the repository: its network as bfloat16, and the record of its making.

``python scripts/ship_teacher.py data/scenes/teacher`` from the project root, after ``dvc repro teacher`` with
``teacher=scenes-train``; then put the printed hash into conf/teacher/scenes.yaml.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from rcm_core.storage import atomic_folder, read_json, sha256_folder, write_json

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
MOST = 12 * 2**20


def ship(runs: Path, place: Path) -> str:
    """Writes ``place/{pipeline,record.json}`` from ``runs/teacher``; the content hash of the pipeline."""
    with atomic_folder(place / "pipeline") as folder:
        shutil.copytree(runs / "teacher/pipeline", folder, dirs_exist_ok=True)
        halved = {name: value.bfloat16() for name, value in load_file(folder / WEIGHTS).items()}
        save_file(halved, folder / WEIGHTS, metadata={"format": "pt"})
    size = sum(path.stat().st_size for path in (place / "pipeline").rglob("*") if path.is_file())
    if size > MOST:
        raise SystemExit(f"{place} would hold {size:,} bytes; ship at most {MOST:,}")
    record = read_json(runs / "teacher/record.json", "teacher")
    trained = read_json(runs / "teacher/teacher.json", "teacher")["hash"]
    digest = sha256_folder(place / "pipeline")
    write_json(place / "record.json", {**record, "trained_hash": trained, "shipped_hash": digest})
    return digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the teacher stage has run")
    options = parser.parse_args()
    print(f"hash: {ship(options.runs, options.place)}")


if __name__ == "__main__":
    main()

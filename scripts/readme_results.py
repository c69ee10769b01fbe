"""Put a finished run's numbers and samples into the README: ``python scripts/readme_results.py runs``.

Writes docs/images/samples.png and docs/results/mini.json (the run's metrics.json with its records' times), and the
table between the README's ``results`` markers. docs/images/scenes.png is drawn from the comparison's samples.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from rcm_core.evaluation.report.formatting import markdown_table
from rcm_core.storage.run_folder import RunFolder

ROOT = Path(__file__).parent.parent
ROWS = {
    "teacher": "teacher, 50 steps",
    "student_4": "student, 4 steps",
    "student_2": "student, 2 steps",
    "student_1": "student, 1 step",
    "teacher_1": "teacher, 1 step",
}
BEGIN, END = "<!-- results -->", "<!-- /results -->"
SIDE, GAP, LABELS, SHOWN = 96, 4, 160, 10
"""Pixels of a drawn sample, between two, and of the words; samples in a row."""
SCENES = {"teacher, 50 steps": ("teacher", 0, 2)} | {
    f"student, {steps} step{'s' * (steps > 1)}": ("time/dmd2-0", row, 3)
    for steps, row in ((4, 2), (2, 1), (1, 0))
}
"""Words; a picture of docs/results/compare/scenes without its ending, which of its rows, and how many it has."""


def digits(samples: Path) -> Image.Image:
    """Draw the first sample of each digit: a row per sampler, a column per digit, the same noise in a column."""
    prompts = json.loads((samples / "prompts.json").read_text())
    from rcm_core.benchmarks.digits import label

    first = [next(i for i, p in enumerate(prompts) if label(p) == digit) for digit in range(SHOWN)]
    rows = {}
    for name, words in ROWS.items():
        pixels = load_file(samples / f"{name}.safetensors")["pixels"][first, 0, 0].numpy()
        rows[words] = [Image.fromarray((255 * image).round().astype(np.uint8)) for image in pixels]
    return grid(rows)


def scenes(results: Path) -> Image.Image:
    """Return the committed samples of the comparison, without the white line after each."""
    rows = {}
    for words, (name, row, rows_in_it) in SCENES.items():
        with Image.open(results / f"{name}.png") as whole:
            side, across = whole.height // rows_in_it, whole.width // SHOWN
            boxes = [(x * across, row * side, x * across + side, (row + 1) * side) for x in range(SHOWN)]
            rows[words] = [whole.crop(box) for box in boxes]
    return grid(rows)


def grid(rows: Mapping[str, Sequence[Image.Image]]) -> Image.Image:
    """Draw labelled rows of samples."""
    canvas = Image.new("RGB", (LABELS + SHOWN * (SIDE + GAP), len(rows) * (SIDE + GAP)), "white")
    draw = ImageDraw.Draw(canvas)
    for y, (words, images) in enumerate(rows.items()):
        top = y * (SIDE + GAP)
        draw.text((0, top + SIDE // 2 - 9), words, fill="black", font_size=16)
        for x, image in enumerate(images):
            large = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
            canvas.paste(large, (LABELS + x * (SIDE + GAP), top))
    return canvas


def table(metrics: dict[str, Any]) -> str:
    """Return the main numbers with their intervals, as Markdown."""
    teacher = metrics["teacher"]["seconds_per_sample"]["value"]
    heads = [
        "sampler", "network calls", "times faster", "Frechet to real", "Frechet to teacher", "accuracy", "diversity",
    ]  # fmt: skip
    rows = []
    for name, words in ROWS.items():
        row = metrics[name]
        distances = [
            f"{row[k]['value']:.2f} [{row[k]['low']:.2f}, {row[k]['high']:.2f}]"
            for k in ("frechet", "frechet_teacher")
        ]
        faster = f"{teacher / row['seconds_per_sample']['value']:.0f}"
        shares = f"{100 * row['accuracy']['value']:.1f} %", f"{row['diversity']['value']:.2f}"
        rows.append([words, f"{row['network_calls']['value']:.0f}", faster, *distances, *shares])
    return markdown_table(heads, rows)


def main() -> int:
    """Rewrite the files."""
    run = RunFolder(Path(sys.argv[1]))
    metrics = json.loads(run.metrics_file.read_text())
    records = {p.parent.name: json.loads(p.read_text()) for p in sorted(run.root.glob("*/record.json"))}
    seconds = {stage: record["seconds"] for stage, record in records.items()}
    (ROOT / "docs/images").mkdir(parents=True, exist_ok=True)
    (ROOT / "docs/results").mkdir(parents=True, exist_ok=True)
    digits(run.samples).save(ROOT / "docs/images/samples.png", optimize=True)
    scenes(ROOT / "docs/results/compare/scenes").save(ROOT / "docs/images/scenes.png", optimize=True)
    machine = {k: records["train"][k] for k in ("machine", "device", "versions", "commit")}
    facts = {"metrics": metrics, "stage_seconds": seconds, **machine}
    (ROOT / "docs/results/mini.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    readme = (ROOT / "README.md").read_text()
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    (ROOT / "README.md").write_text(f"{before}{BEGIN}\n{table(metrics)}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

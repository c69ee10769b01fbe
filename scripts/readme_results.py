"""Puts a finished run's numbers and samples into the README: ``python scripts/readme_results.py runs``.

Writes docs/images/samples.png and docs/results/mini.json (the run's metrics.json with its records' times), and the
table between the README's ``results`` markers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
ROWS = {
    "teacher": "teacher, 50 steps",
    "student_4": "student, 4 steps",
    "student_2": "student, 2 steps",
    "student_1": "student, 1 step",
    "teacher_1": "teacher, 1 step",
}
BEGIN, END = "<!-- results -->", "<!-- /results -->"
SCALE, GAP, SHOWN = 6, 4, 10


def picture(samples: Path) -> Image.Image:
    """One row per sampler, one column per digit, the same noise down a column; the first sample of each digit."""
    prompts = json.loads((samples / "prompts.json").read_text())
    from rcm_core.benchmarks.digits import label

    first = [next(i for i, p in enumerate(prompts) if label(p) == digit) for digit in range(SHOWN)]
    tile = 8 * SCALE
    labels = 150
    canvas = Image.new("L", (labels + SHOWN * (tile + GAP), len(ROWS) * (tile + GAP)), 255)
    draw = ImageDraw.Draw(canvas)
    for y, (name, words) in enumerate(ROWS.items()):
        pixels = load_file(samples / f"{name}.safetensors")["pixels"][first, 0, 0].numpy()
        draw.text((0, y * (tile + GAP) + tile // 2 - 5), words, fill=0, font_size=15)
        for x, image in enumerate(pixels):
            shown = Image.fromarray((255 * image).round().astype(np.uint8)).resize(
                (tile, tile), Image.Resampling.NEAREST
            )
            canvas.paste(shown, (labels + x * (tile + GAP), y * (tile + GAP)))
    return canvas


def table(metrics: dict[str, Any]) -> str:
    """Markdown: the numbers that matter, with their intervals."""
    teacher = metrics["teacher"]["seconds_per_sample"]["value"]
    lines = [
        "| sampler | network calls | times faster | Frechet to real | Frechet to teacher | accuracy | diversity |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, words in ROWS.items():
        row = metrics[name]
        cells = [
            f"{row[k]['value']:.2f} [{row[k]['low']:.2f}, {row[k]['high']:.2f}]"
            for k in ("frechet", "frechet_teacher")
        ]
        cells.append(f"{100 * row['accuracy']['value']:.1f} %")
        cells.append(f"{row['diversity']['value']:.2f}")
        faster = teacher / row["seconds_per_sample"]["value"]
        lines.append(
            f"| {words} | {row['network_calls']['value']:.0f} | {faster:.0f} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Rewrites the three files."""
    runs = Path(sys.argv[1])
    metrics = json.loads((runs / "evaluate/metrics.json").read_text())
    records = {p.parent.name: json.loads(p.read_text()) for p in sorted(runs.glob("*/record.json"))}
    seconds = {stage: record["seconds"] for stage, record in records.items()}
    (ROOT / "docs/images").mkdir(parents=True, exist_ok=True)
    (ROOT / "docs/results").mkdir(parents=True, exist_ok=True)
    picture(runs / "evaluate/samples").save(ROOT / "docs/images/samples.png")
    machine = {k: records["train"][k] for k in ("machine", "device", "versions", "commit")}
    facts = {"metrics": metrics, "stage_seconds": seconds, **machine}
    (ROOT / "docs/results/mini.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    readme = (ROOT / "README.md").read_text()
    before, after = readme.split(BEGIN)[0], readme.split(END)[1]
    (ROOT / "README.md").write_text(f"{before}{BEGIN}\n{table(metrics)}\n{END}{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Synthetic input files for the report, and a parser of the report."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from rcm_core.evaluation.bootstrap import Estimate, exact
from rcm_core.evaluation.selection import Candidate, choose
from rcm_core.monitoring.early_stopping import ProbeResult, StopDecision
from rcm_core.storage.files import write_json

PROMPTS = [f"the digit {i % 6}" for i in range(60)]
VOID = {"meta", "img", "br", "path", "use", "rect", "circle", "line", "polyline", "polygon"}


def about(value: float, width: float) -> Estimate:
    return {"value": value, "low": value - width, "high": value + width, "n": 60}


def row(frechet: float, accuracy: float, calls: int, seconds: float) -> dict[str, Any]:
    return {
        "frechet": about(frechet, 0.2), "frechet_teacher": about(frechet - 0.6, 0.2),
        "accuracy": about(accuracy, 0.008), "precision": about(0.93, 0.02), "recall": about(0.81, 0.03),
        "diversity": about(1.9, 0.05), "network_calls": exact(calls, 60),
        "seconds_per_sample": about(seconds, seconds / 20),
    }  # fmt: skip


def made_up_selection() -> dict[str, Any]:
    scores = {
        Candidate(f"step_{step:06d}-ema_{ema:.2f}", step, ema): {
            str(steps): about(1.4 + 300 / step + 4 * ema / steps, 0.15) for steps in (1, 2, 4)
        }
        for step in (300, 600, 900)
        for ema in (0.05, 0.1)
    }
    return choose(scores, "frechet", (1, 2, 4)) | {
        "sampler": {"kind": "renoise", "times": [[1.5], [1.5, 1.2], [1.5, 1.2, 0.8, 0.5]]}
    }


def record(stage: str, seconds: float) -> dict[str, Any]:
    parameters = {"train": {"iterations": 900, "lr": {"student": 2e-4, "fake": 2e-4}, "tangent": "exact"}}
    method = {"method": {"name": "rcm", "student_every": 5, "fixed_times": None, "p_mean": -0.8}}
    return {
        "stage": stage, "parameters": parameters | method, "inputs": {"runs/teacher/teacher.json": "ab" * 32},
        "commit": "0123abc" * 5, "versions": {"torch": "2.13.0", "ray": None}, "seed": 0, "device": "cpu",
        "seconds": seconds, "peak_memory_bytes": 700 * 2**20,
    }  # fmt: skip


def made_up_health(verdict: StopDecision | None = None, **changed: Any) -> dict[str, Any]:
    readings = [ProbeResult.of(step, (0.4 / (step + 100), -0.1, 0.05, 0.1)) for step in (0, 300, 600, 900)]
    return {
        "step": 900, "iterations": 900, "tangent": "exact", "nonfinite": 0, "step_downs": [],
        "spikes": {"tangent_norm": 0, "gradient_norm": 0}, "readings": [r._asdict() for r in readings],
        "verdict": verdict._asdict() if verdict else None,
    } | changed  # fmt: skip


def made_up_run(
    runs: Path, shape: tuple[int, ...], prompts: list[str], pixels: torch.Tensor | None = None
) -> Path:
    """Write a folder ``runs`` with the files that the report reads; return it."""
    write_json(runs / "teacher/teacher.json", {
        "hash": "5f" * 32, "family": "wan", "licence": "Apache-2.0", "source": "mini",
        "guidance": 2.0, "steps": 50, "shift": 3.0, "solver": "euler", "negative_prompt": "",
        "shape": list(shape), "data": "digits", "precision": "float32",
        "gate": {"judge_accuracy": 0.98, "teacher_accuracy": 0.99},
    })  # fmt: skip
    metrics = {
        "teacher": row(1.8, 0.995, 100, 0.05), "teacher_1": row(4.5, 0.99, 2, 0.001),
        "student_1": row(2.2, 0.99, 1, 0.0005), "student_2": row(2.0, 0.992, 2, 0.001),
        "student_4": row(1.85, 0.994, 4, 0.002),
    }  # fmt: skip
    protocol = {"hash": "c0" * 32, "description": "60 samples for 6 held-out prompts."}
    write_json(runs / "evaluate/metrics.json", metrics | {"protocol": protocol})
    write_json(runs / "evaluate/samples/prompts.json", prompts)
    rng = torch.Generator().manual_seed(0)
    real = pixels if pixels is not None else torch.rand(len(prompts), *shape, generator=rng)
    for key in metrics:
        noisy = (real + 0.05 * torch.randn(real.shape, generator=rng)).clamp(0, 1)
        save_file({"pixels": noisy.contiguous()}, runs / f"evaluate/samples/{key}.safetensors")
    write_json(runs / "select/selection.json", made_up_selection())
    curve = [
        f"{s},{3 - s / 600:.4f},{60 * np.exp(-s / 400):.4f},0,{0.9 + 90 / s:.4f}," for s in range(50, 901, 50)
    ]
    (runs / "train").mkdir(parents=True)
    header = "step,loss,tangent_norm,nonfinite,fake_loss,dmd_gradient"
    (runs / "train/curves.csv").write_text("\n".join([header, *curve]) + "\n")
    write_json(runs / "train/health.json", made_up_health())
    spent = {
        "teacher": 172.4,
        "prompts": 0.1,
        "trajectories": 44.0,
        "train": 231.9,
        "select": 9.0,
        "evaluate": 31.0,
    }
    for stage, seconds in spent.items():
        write_json(runs / stage / "record.json", record(stage, seconds))
    return runs


class Page(HTMLParser):
    """Parser that collects text and attributes and checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "srcset", "action", "data", "poster"):
                (self.pictures if tag == "img" else self.links).append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

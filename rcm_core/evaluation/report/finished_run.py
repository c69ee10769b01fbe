"""The input of the report: the JSON, curves and samples that the stages wrote to ``runs/``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.storage.checked_json import read
from rcm_core.storage.formats import read_csv, read_tensors
from rcm_core.storage.run_folder import RunFolder
from rcm_core.storage.schemas import Record, TrainRecord

STAGES = ("teacher", "prompts", "trajectories", "train", "select", "evaluate")
Curve = list[tuple[float, float]]


class Sampler(NamedTuple):
    """One row of the results: a network and its number of steps."""

    key: str
    """Key in metrics.json, such as "teacher", "teacher_1" or "student_4"."""
    name: str
    steps: int
    student: bool


class Run(NamedTuple):
    """A finished run, up to evaluate."""

    teacher: dict[str, Any]
    selection: dict[str, Any]
    metrics: dict[str, Any]
    samplers: list[Sampler]
    """The teacher, then the students from most to fewest steps, then the undistilled teacher."""
    samples: dict[str, Tensor]
    """Pixels in [0, 1], ``[N, C, T, H, W]``, by sampler key."""
    prompts: list[str]
    curves: dict[str, Curve]
    """(step, value) pairs by column; columns without a value are left out."""
    health: dict[str, Any]
    records: dict[str, dict[str, Any]]

    @property
    def distance(self) -> str:
        """Key of the main Frechet distance: to real images, or to the teacher's samples without real images."""
        return "frechet" if "frechet" in self.metrics["teacher"] else "frechet_teacher"

    @property
    def reference(self) -> str:
        """Name of the reference samples of ``frechet_teacher``."""
        reference: str = self.metrics["protocol"].get("reference", "the teacher's samples")
        return reference


def read_run(run: RunFolder) -> Run:
    """Read a finished run; InputError names a file that is missing, unreadable or inconsistent."""
    teacher, metrics, prompts = run.teacher(), run.metrics(), run.sample_prompts()
    samplers = _samplers(metrics, teacher["steps"])
    return Run(
        teacher=teacher,
        selection=run.selection(),
        metrics=metrics,
        samplers=samplers,
        samples={s.key: _pixels(run.samples / f"{s.key}.safetensors", len(prompts)) for s in samplers},
        prompts=prompts,
        curves=_curves(run.curves),
        health=run.health(),
        records=_records(run),
    )


def count_steps(steps: int) -> str:
    """Return "1 step" or, for example, "4 steps"."""
    return f"{steps} step" if steps == 1 else f"{steps} steps"


def _samplers(metrics: dict[str, Any], teacher_steps: int) -> list[Sampler]:
    def counts(prefix: str) -> list[int]:
        return sorted(
            (int(key.removeprefix(prefix)) for key in metrics if key.startswith(prefix)), reverse=True
        )

    return [
        Sampler("teacher", f"Teacher, {count_steps(teacher_steps)}", teacher_steps, False),
        *(Sampler(f"student_{s}", f"Student, {count_steps(s)}", s, True) for s in counts("student_")),
        *(Sampler(f"teacher_{s}", f"Not distilled, {count_steps(s)}", s, False) for s in counts("teacher_")),
    ]


def _records(run: RunFolder) -> dict[str, dict[str, Any]]:
    return {
        stage: read(run.record_file(stage), TrainRecord if stage == "train" else Record, stage)
        for stage in STAGES
    }


def _pixels(path: Path, expected: int) -> Tensor:
    if not path.is_file():
        raise InputError(f"{path} does not exist; make it with `dvc repro evaluate`")
    tensors = read_tensors(path, "run `dvc repro -f evaluate`")
    if "pixels" not in tensors:
        raise InputError(f"{path} holds no tensor 'pixels'; run `dvc repro -f evaluate`")
    pixels: Tensor = tensors["pixels"]
    if pixels.ndim != 5 or len(pixels) != expected:
        raise InputError(
            f"{path} holds pixels {list(pixels.shape)} for {expected} prompts; expected"
            " [prompts, C, T, H, W]; run `dvc repro -f evaluate`"
        )
    return pixels


def _curves(path: Path) -> dict[str, Curve]:
    rows = read_csv(path, ("step",), "make it with `dvc repro train`")
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}

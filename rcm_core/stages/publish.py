"""publish: the chosen student as a diffusers pipeline with a model card; ``runs/publish/pipeline``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rcm_core.config import Params
from rcm_core.evaluation.card import model_card
from rcm_core.latents import pixel_shape
from rcm_core.pipeline_files import pipeline_files
from rcm_core.protocols import Executor
from rcm_core.record import dump, hash_inputs, recorded
from rcm_core.samplers.few_step import Sampler
from rcm_core.sampling import Teacher, codec_of, read_sampler
from rcm_core.storage import atomic_folder, filesystem, read_json, require_space, sha256_folder, write_json

STAGE = "publish"


def run(params: Params, workspace: Path, executor: Executor) -> None:  # noqa: ARG001 - nothing to distribute
    """Writes the pipeline folder and, if a target is set, copies it to ``<target>/<name>/<version>``."""
    inputs = hash_inputs(
        workspace,
        [
            "runs/teacher/pipeline",
            "runs/select/selection.json",
            "runs/select/transformer",
            "runs/evaluate/quality.json",
        ],
    )
    parameters = dump(publish=params.publish, method=params.method)
    with recorded(STAGE, workspace, parameters, inputs, None, "cpu") as extra:
        out = workspace / "runs" / STAGE / "pipeline"
        chosen = workspace / "runs/select/selection.json"
        selection = read_json(chosen, "select")
        sampler = read_sampler(selection.get("sampler"), chosen, "select")
        facts = _facts(params, workspace, selection)
        require_space(
            out.parent,
            2 * sum(f.stat().st_size for f in (workspace / "runs/teacher").rglob("*") if f.is_file()),
        )
        with atomic_folder(out) as folder:
            shutil.copytree(workspace / "runs/teacher/pipeline", folder, dirs_exist_ok=True)
            shutil.rmtree(folder / "transformer")
            shutil.copytree(workspace / "runs/select/transformer", folder / "transformer")
            _write_scheduler(folder, sampler)
            facts["version"] = sha256_folder(folder)[:12]
            write_json(folder / "student.json", facts)
            quality = read_json(workspace / "runs/evaluate/quality.json", "evaluate")
            (folder / "README.md").write_text(
                model_card(facts, sampler, quality, params.publish.name, _pixels(folder, facts["shape"]))
            )
        extra["version"] = facts["version"]
        if params.publish.target is not None:
            target = params.publish.target.rstrip("/")
            place = target if "://" in target else str(workspace / target)
            extra["published"] = f"{place}/{params.publish.name}/{facts['version']}"
            _copy(out, extra["published"], params.publish.endpoint)


def _facts(params: Params, workspace: Path, selection: dict[str, Any]) -> dict[str, Any]:
    """``student.json``; the sampler is in the scheduler's configuration alone."""
    teacher = Teacher.read(workspace)
    source = read_json(workspace / "runs/teacher/teacher.json", "teacher")
    return {
        "family": teacher.family,
        "shape": list(teacher.shape),
        "text_length": codec_of(teacher.folder, teacher.family).length,
        **({} if teacher.precision == "float32" else {"precision": teacher.precision}),
        "steps": selection["steps"],
        "method": params.method,
        "choice": selection["choice"],
        "teacher": {
            k: source[k] for k in ("source", "hash", "licence", "guidance", "steps", "shift", "data")
        },
    }


def _pixels(pipeline: Path, shape: list[int]) -> tuple[int, ...]:
    """As diffusers' pipeline counts them, for whom pixel space is enlarged."""
    channels, frames, height, width = pixel_shape(pipeline, tuple(shape))
    config = read_json(pipeline / "vae/config.json", "teacher")
    if config["_class_name"] != "PixelSpace":
        return channels, frames, height, width
    time, space = config["scale_factor_temporal"], config["scale_factor_spatial"]
    return channels, time * (frames - 1) + 1, space * height, space * width


def _write_scheduler(folder: Path, sampler: Sampler) -> None:
    """Puts the student's few-step sampler in the place of the teacher's scheduler."""
    from rcm_core.samplers.scheduler import FewStepScheduler

    shutil.rmtree(folder / "scheduler")
    times = [list(angles) for angles in sampler.times]
    FewStepScheduler(sampler.kind, times).save_pretrained(folder / "scheduler")
    index = read_json(folder / "model_index.json", "teacher")
    index["scheduler"] = [FewStepScheduler.__module__, FewStepScheduler.__name__]
    write_json(folder / "model_index.json", index)


def _copy(out: Path, target: str, endpoint: str | None) -> None:
    """A version that is there already is left alone; the model card is written last, so it marks a whole copy."""
    system, root = filesystem(target, endpoint)
    if not system.exists(f"{root}/README.md"):
        files = pipeline_files(out)
        for path in [*(p for n, p in files.items() if n != "README.md"), out / "README.md"]:
            name = f"{root}/{path.relative_to(out).as_posix()}"
            system.makedirs(name.rsplit("/", 1)[0], exist_ok=True)
            system.put_file(str(path), name)
    print(f"published {target}", flush=True)

"""publish: the chosen student as a diffusers pipeline with a model card; ``runs/publish/pipeline``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rcm_core.config.sections import Params
from rcm_core.evaluation.report.model_card import ABSENT, model_card
from rcm_core.execution import Executor
from rcm_core.networks.weights import LORA, Target, is_lora, loading, read_lora, write_network
from rcm_core.pipelines.folder import read_part
from rcm_core.pipelines.loaded_files import loaded_files
from rcm_core.pipelines.teacher_folder import is_ours, verified_pipeline
from rcm_core.pipelines.vae import pixel_shape
from rcm_core.record import dump, hash_inputs, write_record
from rcm_core.registry import find_family
from rcm_core.samplers.few_step import Sampler
from rcm_core.samplers.jobs import Teacher, codec_of, read_sampler
from rcm_core.storage.files import (
    atomic_folder,
    read_json,
    require_space,
    require_target,
    sha256_files,
    write_json,
)
from rcm_core.storage.links import place_file, shares
from rcm_core.storage.pipeline_files import pipeline_files
from rcm_core.storage.run_folder import RELATIVE, RunFolder
from rcm_core.storage.s3 import filesystem, unbroken
from rcm_core.storage.uploads import Earlier

STAGE = "publish"


def run(params: Params, workspace: Path, executor: Executor) -> None:  # noqa: ARG001 - nothing to distribute
    """Write the pipeline folder and, if a target is set, copy it to ``<target>/<name>/<version>``."""
    inputs = hash_inputs(
        workspace,
        [
            RELATIVE.teacher_file,
            RELATIVE.selection_file,
            RELATIVE.student,
            RELATIVE.quality_file,
        ],
    )
    source = verified_pipeline(workspace)
    if params.publish.target is not None:
        require_target(params.publish.target, workspace, "publish.target")
    precision = {"train.candidate_precision": params.train.candidate_precision}
    parameters = precision | dump(publish=params.publish, method=params.method)
    with write_record(STAGE, workspace, parameters, inputs, None, "cpu") as extra:
        run_folder = RunFolder.of(workspace)
        out, selection = run_folder.published, run_folder.selection()
        sampler = read_sampler(selection["sampler"], run_folder.selection_file, "select")
        quality = run_folder.quality()
        facts = _facts(params, workspace, selection)
        with atomic_folder(out) as folder:
            ours = is_ours(run_folder.teacher())
            placed = _place(folder, source, ours, run_folder.student)
            if is_lora(folder / "transformer"):
                _merge(folder / "transformer", source, params, workspace)
            _write_scheduler(folder, sampler)
            facts["version"] = sha256_files({**pipeline_files(folder), **placed})[:12]
            write_json(folder / "student.json", facts)
            (folder / "README.md").write_text(
                model_card(facts, sampler, quality, params.publish.name, _pixels(folder, facts["shape"]))
            )
        extra["version"] = facts["version"]
        if params.publish.target is not None:
            target = params.publish.target.rstrip("/")
            place = target if "://" in target else str(workspace / target)
            extra["published"] = f"{place}/{params.publish.name}/{facts['version']}"
            _copy(out, extra["published"], params.publish.endpoint, placed)


def _place(folder: Path, teacher: Path, ours: bool, transformer: Path) -> dict[str, Path]:
    """Place the student's network and the files that it shares with its teacher in ``folder``.

    Large files are linked, not copied; the teacher's only if ``ours`` is true. Returns the originals of the files by
    their names in ``folder``; their cached hashes stay valid.
    """
    files = pipeline_files(teacher)
    shared = loaded_files(list(files), read_part(teacher, "model_index.json"))
    placed = {name: files[name] for name in shared if name.split("/")[0] not in ("transformer", "scheduler")}
    placed |= {f"transformer/{name}": path for name, path in pipeline_files(transformer).items()}
    linked = {name for name in placed if ours or name.startswith("transformer/")}
    copied = (path for name, path in placed.items() if name not in linked or not shares(path, folder))
    require_space(folder.parent, sum(path.stat().st_size for path in copied))
    for name, path in placed.items():
        place_file(path, folder / name, name in linked)
    del placed["model_index.json"]  # _write_scheduler changes it
    return placed


def _merge(transformer: Path, teacher: Path, params: Params, workspace: Path) -> None:
    """Write the teacher's network with the LoRA in ``transformer`` added, as one network beside the LoRA."""
    facts = Teacher.read(workspace)
    family = find_family(facts.family)
    precision = params.train.candidate_precision or facts.precision
    low, matrices = precision == "bfloat16", transformer / LORA
    require_space(transformer, sum(f.stat().st_size for f in (teacher / "transformer").glob("*.safetensors")))
    target = Target(
        dtype=torch.bfloat16 if low else torch.float32, exact=family.time_embedder, lora=read_lora(matrices)
    )
    with loading(target):
        network = family.load_network(teacher)
    with atomic_folder(transformer) as whole:
        write_network(whole, network, network.state_dict())
        place_file(matrices, whole / LORA)


def _facts(params: Params, workspace: Path, selection: dict[str, Any]) -> dict[str, Any]:
    """Return the content of ``student.json``; only the scheduler's configuration holds the sampler."""
    teacher = Teacher.read(workspace)
    source = RunFolder.of(workspace).teacher()
    index = read_part(Path(teacher.folder), "model_index.json")
    absent = [name for name in ABSENT.get(teacher.family, ()) if index.get(name, [None])[0] is None]
    return {
        "family": teacher.family,
        "shape": list(teacher.shape),
        "text_length": codec_of(teacher.folder, teacher.family).length,
        **({"absent": absent} if teacher.family in ABSENT else {}),
        **({} if teacher.precision == "float32" else {"precision": teacher.precision}),
        "steps": selection["steps"],
        "method": params.method,
        "choice": selection["choice"],
        "teacher": {
            **{k: source[k] for k in ("source", "hash", "licence", "guidance", "steps", "shift", "data")},
            **{k: source[k] for k in ("variant",) if k in source},
        },
    }


def _pixels(pipeline: Path, shape: list[int]) -> tuple[int, ...]:
    """Return the sample shape as diffusers' pipeline counts it, which enlarges pixel space."""
    channels, frames, height, width = pixel_shape(pipeline, tuple(shape))
    config = read_json(pipeline / "vae/config.json", "teacher")
    if config["_class_name"] != "PixelSpace":
        return channels, frames, height, width
    time, space = config["scale_factor_temporal"], config["scale_factor_spatial"]
    return channels, time * (frames - 1) + 1, space * height, space * width


def _write_scheduler(folder: Path, sampler: Sampler) -> None:
    """Replace the teacher's scheduler by the student's few-step sampler."""
    from rcm_core.samplers.scheduler import FewStepScheduler

    times = [list(angles) for angles in sampler.times]
    FewStepScheduler(sampler.kind, times).save_pretrained(folder / "scheduler")
    index = read_json(folder / "model_index.json", "teacher")
    index["scheduler"] = [FewStepScheduler.__module__, FewStepScheduler.__name__]
    write_json(folder / "model_index.json", index)


def _copy(out: Path, target: str, endpoint: str | None, originals: Mapping[str, Path]) -> None:
    """Copy ``out`` to ``target``; versions and files that already exist are not written again.

    The model card is written last, so it marks a complete copy. On a local file system large files are linked; on S3,
    files of an earlier version of the student are copied by the server. ``originals`` maps names to files with the
    same bytes.
    """
    system, root = filesystem(target, endpoint)
    with unbroken(target):
        if not system.exists(f"{root}/README.md"):
            files = pipeline_files(out)
            earlier = Earlier(system, root)
            for name in [*(n for n in files if n != "README.md"), "README.md"]:
                if "file" in system.protocol:
                    place_file(files[name], Path(root) / name)
                else:
                    earlier.upload(files[name], f"{root}/{name}", originals.get(name, files[name]))
    print(f"published {target}", flush=True)

"""select: chooses a candidate on the validation split alone; ``runs/select/{selection.json,transformer}``."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.selection import Candidate, choose
from rcm_core.evaluation.validation import scale_of, score_job, validation_job
from rcm_core.execution import Executor
from rcm_core.pipelines.teacher_folder import verified_pipeline
from rcm_core.record import dump, hash_inputs, write_record
from rcm_core.samplers.few_step import Sampler
from rcm_core.storage.files import atomic_folder, write_json
from rcm_core.storage.links import place_folder
from rcm_core.storage.run_folder import RELATIVE, RunFolder

STAGE = "select"


def run(params: Params, workspace: Path, executor: Executor) -> None:
    """Score every checkpoint x EMA length at every step count, and copy the network of the best."""
    section = params.select
    sampler = Sampler.of(params.sampler.kind, params.sampler.times)
    inputs = hash_inputs(workspace, [RELATIVE.teacher_file, RELATIVE.prompts_file, RELATIVE.candidates])
    verified_pipeline(workspace)
    parameters = dump(select=section, sampler=params.sampler, judge=params.judge)
    with write_record(STAGE, workspace, parameters, inputs, section.seed, section.device):
        run_folder = RunFolder.of(workspace)
        root = run_folder.candidates
        names = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        candidates = {parse(name): root / name for name in names}
        if not candidates:
            raise InputError(
                f"{root} holds no candidate; run `dvc repro train`, with train.candidate_every <= train.iterations"
            )
        whole = replace(validation_job(section, workspace, executor.state_root / "cache"), sampler=sampler)
        scale = scale_of(params, workspace, executor)
        items = [
            ((candidate, steps), replace(whole, steps=steps, network=str(folder / "transformer")), scale)
            for candidate, folder in candidates.items()
            for steps in section.steps
        ]
        scores: dict[Candidate, dict[str, Estimate]] = {candidate: {} for candidate in candidates}
        for (candidate, steps), estimate in executor.map(
            score_job, items, "candidates", device=section.device
        ):
            scores[candidate][str(steps)] = estimate
        ordered = {c: {str(s): v[str(s)] for s in section.steps} for c, v in scores.items()}
        selection = choose(ordered, section.metric, section.steps) | {"sampler": asdict(sampler)}
        with atomic_folder(run_folder.student) as folder:
            place_folder(root / selection["choice"]["name"] / "transformer", folder)
        write_json(run_folder.selection_file, selection)
    print(f"select: {selection['reason']}", flush=True)


def parse(name: str) -> Candidate:
    """Parse a name such as ``step_000300-ema_0.05``; InputError for another name."""
    try:
        step, ema = name.removeprefix("step_").split("-ema_")
        return Candidate(name, int(step), float(ema))
    except ValueError as error:
        raise InputError(
            f"{RELATIVE.candidates / name} is not a candidate's name (step_<n>-ema_<length>); remove it"
        ) from error

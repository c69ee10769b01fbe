"""``rcm tune-times``: the search of rcm_core/evaluation/time_search.py, shown as a table and as the setting to use."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from infra.commands.summary import cell
from infra.commands.tables import print_table
from infra.launch import LazyExecutor
from infra.state import hold, state_home
from rcm_core.config.load import load_params
from rcm_core.diffusion.trigflow import NOISE_ANGLE
from rcm_core.errors import InputError
from rcm_core.evaluation.time_search import Angles, Round, Tuning, tune
from rcm_core.storage.files import write_json
from rcm_core.storage.run_folder import RELATIVE, RunFolder


def tune_times(params: Path, workspace: Path, steps: int, samples: int | None) -> Tuning:
    """Searches, writes ``runs/tune/times.json`` and prints what was found; nothing that a stage reads is changed."""
    checked = load_params(params)
    place = RunFolder.of(workspace).tuned_times
    place.parent.mkdir(parents=True, exist_ok=True)  # before the search: what cannot be written ends it here
    if place.is_dir():
        raise InputError(f"{place} is a folder, and the result is written there; remove it")
    lock = state_home(workspace) / "locks" / f"{workspace.name}-tune"
    with hold(lock), LazyExecutor(workspace, None) as executor:
        found = tune(checked, workspace, executor, steps, samples)
        write_json(place, found.record())
    show(found)
    return found


def show(found: Tuning) -> None:
    """A row per list that was tried, a sentence per number of steps, and the command that uses the result."""
    console = Console(highlight=False)
    console.print(
        f"{found.metric} of {found.student} on the validation split; {found.samples} samples a row, from the same"
        " noise; within: its score lies in the interval of the best one",
        soft_wrap=True,
    )
    print_table(*table(found), keep=2)
    for outcome in found.rounds:
        console.print(sentence(outcome), soft_wrap=True)
    console.print(
        f"written to {RELATIVE.tuned_times}; to use it, with the other overrides of your run:", soft_wrap=True
    )
    console.print(f"    dvc exp run -S '{setting(found)}'", soft_wrap=True, markup=False)


def table(found: Tuning) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: steps, angles, score with its interval, whether it is the best or the present list."""
    rows = []
    for outcome in found.rounds:
        for angles, score in outcome.scores.items():
            notes = {
                "best": angles == outcome.advised,
                "now": angles == outcome.now,
                "within": angles in outcome.near,
            }
            words = ", ".join(note for note, holds in notes.items() if holds)
            rows.append([str(outcome.steps), format_angles(angles).strip("[]"), cell(dict(score)), words])  # type: ignore[arg-type]
    return ["steps", "angles", found.metric.replace("_", " "), ""], rows


def sentence(outcome: Round) -> str:
    """Which list is best, and how sure that is."""
    others, near = len(outcome.scores) - 1, len(outcome.near)
    head = f"{outcome.steps} step{'s' if outcome.steps > 1 else ''}: {format_angles(outcome.advised)}"
    doubt = f"{near} of the {others} others are within its interval"
    if outcome.advised == outcome.now:
        return f"{head}, as it is now; {doubt}"
    if outcome.now in outcome.near:
        there = format_angles(outcome.now or ())
        return f"{head}; {doubt}, and {there}, which is there now, is one of them: no gain is shown"
    return f"{head}; {doubt}"


def setting(found: Tuning) -> str:
    """As ``dvc exp run -S`` takes it."""
    return f"sampler.times=[{','.join(format_angles(angles) for angles in found.sampler.times)}]"


def format_angles(angles: Angles) -> str:
    """``[1.5708,1.3]``: what reads back as the same angles."""
    return f"[{','.join('1.5708' if angle == NOISE_ANGLE else repr(angle) for angle in angles)}]"

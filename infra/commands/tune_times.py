"""``rcm tune-times``: runs rcm_core/evaluation/time_search.py and prints a table and the setting to use."""

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
    """Search, write ``runs/tune/times.json`` and print the result; no input of a stage changes."""
    checked = load_params(params)
    place = RunFolder.of(workspace).tuned_times
    place.parent.mkdir(parents=True, exist_ok=True)  # fail before the search if the result cannot be written
    if place.is_dir():
        raise InputError(
            f"{place} is a folder, but the result is written to a file of that name; remove the folder"
        )
    lock = state_home(workspace) / "locks" / f"{workspace.name}-tune"
    with hold(lock), LazyExecutor(workspace, None) as executor:
        found = tune(checked, workspace, executor, steps, samples)
        write_json(place, found.record())
    show(found)
    return found


def show(found: Tuning) -> None:
    """Print a row per list of times, a sentence per number of steps, and the command that uses the result."""
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
    """Return headers and rows: steps, angles, score with interval, and marks for the best and the current list."""
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
    """Return a sentence: the best list, and how many others are within its interval."""
    others, near = len(outcome.scores) - 1, len(outcome.near)
    head = f"{outcome.steps} step{'s' if outcome.steps > 1 else ''}: {format_angles(outcome.advised)}"
    doubt = f"{near} of the {others} other lists are within its interval"
    if outcome.advised == outcome.now:
        return f"{head}, the current list; {doubt}"
    if outcome.now in outcome.near:
        current = format_angles(outcome.now or ())
        return f"{head}; {doubt}, and the current list {current} is one of them: no significant gain"
    return f"{head}; {doubt}"


def setting(found: Tuning) -> str:
    """Return the result as an override for ``dvc exp run -S``."""
    return f"sampler.times=[{','.join(format_angles(angles) for angles in found.sampler.times)}]"


def format_angles(angles: Angles) -> str:
    """Format as ``[1.5708,1.3]``, which parses to the same angles."""
    return f"[{','.join('1.5708' if angle == NOISE_ANGLE else repr(angle) for angle in angles)}]"

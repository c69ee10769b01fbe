"""Write docs/results.md and its pictures from the JSON in docs/results alone."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.comparison.grid import composed_grid
from experiments.comparison.page.advice import advice
from experiments.comparison.page.claims import (
    CLAIMS,
    MEMORY,
    Claim,
    findings,
    gain,
    memory_verdict,
    verdict_words,
)
from experiments.comparison.page.plots import quality_plot, warm_plot
from experiments.comparison.page.prose import read_notes, wrap
from experiments.comparison.page.results import Group, Results, load
from experiments.comparison.page.tables import (
    BUDGET_WORDS,
    cell,
    claims_table,
    cost_table,
    findings_table,
    lengths_table,
    memory_table,
    mixture_table,
    quality_table,
    warm_table,
)
from experiments.comparison.page.warm_verdict import PROMISED, judge_promise, lengths
from experiments.comparison.plan import PLANS
from rcm_core.storage.files import atomic

INTRODUCTION = """# Results: the methods compared

`python -m experiments.comparison.page` writes this page from the JSON in `docs/results`, which `make compare` writes.
The comments on the claims come from [results-notes.md](results-notes.md).

All methods on a teacher have the same data, noise, network, selection protocol and evaluation protocol (test split).
Selection chooses among candidates at half and at the end of training, with two EMA lengths, by the Frechet distance to
the teacher on the validation split. The evaluated student may therefore be the one at half of a training; the tables of
costs say how often each was updated.

A method has the settings of its preset in `conf/method`. The number of iterations is chosen so that the student is
updated equally often, or so that training takes as long as that of the anchor (`rcm`), by a calibration in which all
methods take turns. Presets were tuned by hand on `mini`, `rcm`'s most
([decision 0005](decisions/0005-the-recipe-of-mini.md)): its learning rate is 3e-4 and that of all others 2e-4, so
`scm-3e-4` and `dmd2-3e-4` are compared too. Every student update of all methods sees equally many training points;
TBCM's are 16 points of each prompt's trajectory. `cdm` has the teacher's guidance - 1 as its alpha.

A student imitates its teacher, so the first distance is the one to the teacher's own samples. The distance to real
images is another question: guidance moves the teacher away from them, and a student that imitates less well may be
nearer to them."""
READING = """## How to read the intervals

All intervals are 95 % intervals over training seeds and samples: the mean over seeds +- t sqrt(s^2/S + w). s^2 is the
variance over the S seeds. w is the mean sampling variance of one run by bootstrap; it counts as common to all seeds,
because all runs are measured with the same prompts and noise. t is Student's quantile at Welch and Satterthwaite's
degrees of freedom. The interval of a row with one seed covers its samples only, and not the variation between
trainings; verdicts on it say so. `experiments/comparison/page/intervals.py` has the derivation, and
`tests/experiments/comparison/page/test_intervals.py` tests the coverage on synthetic data.

The gain of a part of a claim is ours minus theirs, with the sign chosen so that positive is better, plus the allowed
margin, as the mean over all step counts unless one is named. A part *shows* if the interval of the gain is above 0,
*does not show* if it is below 0, and is *undecided* if it contains 0. A part with *within the interval* shows unless
the interval is below 0, and is *not told apart* if it contains 0. A claim shows if all its parts that were run show. It
does not show if one of them does not. Where the two distances lead to different verdicts, the page gives both."""
NOT_RUN = "Not run yet: `{}`."


def page(results: Results, notes: dict[str, str], images: Path) -> str:
    """Return the Markdown; pictures are written to ``images``."""
    parts = [
        INTRODUCTION,
        "## Which method to use",
        advice(results),
        "## Published claims",
        claims_table(results) if results.groups else NOT_RUN.format("make compare"),
        *(_claim(claim, results, notes) for claim in CLAIMS),
        _memory(results, notes),
        _mixture(results, notes),
        _warm(results, notes, images),
    ]
    parts += [_group(group, images) for group in results.groups]
    return "\n\n".join([*parts, READING]) + "\n"


def _claim(claim: Claim, results: Results, notes: dict[str, str]) -> str:
    found = [(group, finding) for group in results.groups for finding in findings(claim, group)]
    run = [(group, finding) for group, finding in found if finding.gain is not None]
    lines = [f"### {claim.name}", f"{claim.words} ({claim.source})."]
    lines.append(findings_table(run) if run else NOT_RUN.format("make compare"))
    for group in results.groups:
        what = verdict_words(findings(claim, group))
        lines.append(f"On `{group.teacher}` at {BUDGET_WORDS[group.budget]}: **{what}**.")
    lines += [_balance(results)] if claim.name == "scm-detail" else []
    return "\n\n".join([*lines, *_note(notes, claim.name)])


def _balance(results: Results) -> str:
    if results.balance is None:
        return f"The balance of rCM's two terms: {NOT_RUN.format('make compare-balance').lower()}"
    shares = ", ".join(
        f"{each['share']:.0%} on `{name}`" for name, each in results.balance["teachers"].items()
    )
    return (
        f"The gradient of matching in the prediction of `{results.balance['run']}`, over the training of seed 0, as a"
        f" share of the largest possible gradient of consistency: {shares}."
    )


def _memory(results: Results, notes: dict[str, str]) -> str:
    lines = [f"### {MEMORY.name}", f"{MEMORY.words} ({MEMORY.source})."]
    if results.memory is None:
        return "\n\n".join([*lines, NOT_RUN.format("make compare-memory"), *_note(notes, MEMORY.name)])
    memory = results.memory
    share = memory["tbcm_of_scm_vae"][memory["decides"]]["tensors"]
    lines += [
        memory_table(memory),
        f"With a VAE of width {memory['decides']}, which decides, TBCM's step needs {share:.0%} of the memory;"
        f" the limit is {memory['allowed']:.0%}: **{memory_verdict(memory)}**.",
    ]
    return "\n\n".join([*lines, *_note(notes, MEMORY.name)])


def _mixture(results: Results, notes: dict[str, str]) -> str:
    lines = ["## What distribution matching matches"]
    mixture = results.mixture
    if mixture is None:
        return "\n\n".join([*lines, NOT_RUN.format("make compare-mixture"), *_note(notes, "mixture")])
    lines += [
        f"Frechet distance to the teacher for students of `{mixture['teacher']}` (seed 0, equal student updates). The"
        f" first columns have {mixture['samples']} predictions of validation prompts in training's own simulation, from"
        " all angles together and from a part of the angles (empty where a method has too few). The last column has the"
        " samples that selection drew from the candidates at half and at the end of training.",
        mixture_table(mixture),
    ]
    return "\n\n".join([*lines, *_note(notes, "mixture")])


def _warm(results: Results, notes: dict[str, str], images: Path) -> str:
    lines = ["## Warm start after an update of the teacher"]
    if not results.warm_starts:
        return "\n\n".join([*lines, NOT_RUN.format("make warm-start"), *_note(notes, "warm-start")])
    for study in results.warm_starts:
        lines += _warm_study(study, images)
    return "\n\n".join([*lines, *_note(notes, "warm-start")])


def _warm_study(study: dict[str, Any], images: Path) -> list[str]:
    picture = f"warm-start-{study['run']}-{study['refined']}-{study['rate']:g}.png"
    warm_plot(study, images / picture)
    found = lengths(study)
    moved = fmean(seed["moved"] for seed in study["seeds"])
    return [
        f"### `{study['run']}`, the teacher trained for {study['refined']} more steps,"
        f" {study['rate']:.0%} of the cold start's learning rate",
        f"The teacher of `{study['teacher']}` was trained for {study['refined']} more steps on other batches and noise,"
        f" which changed its weights by {study['change']:.1%}; distillation had moved the old student's by {moved:.1%}"
        " from the old teacher's. The goal of a warm start (`train.warm_start`, with"
        f" `{' '.join(study['warm'])}`) is to be as good as the finished cold start by the validation score"
        f" (`{study['metric']}`, lower is better, {study['samples']} samples) after at most {PROMISED:.0%} of its"
        f" student updates: **{judge_promise(found)}**. Gains compare pairs on the same samples, one pair per seed.",
        lengths_table(found),
        warm_table(study),
        f"![Validation score over student updates, cold and warm](images/compare/{picture})",
    ]


def _group(group: Group, images: Path) -> str:
    name = f"{group.teacher}-{group.budget}"
    quality_plot(group, images / f"{name}.png")
    words = f"`{group.teacher}`, {BUDGET_WORDS[group.budget]}"
    lines = [f"## {words}", f"![Frechet distance and diversity](images/compare/{name}.png)"]
    lines += [goal] if (goal := goal_sentence(group)) else []
    if missing := not_run(group):
        lines.append(
            f"Not run yet, and left out of all statements on this budget: {', '.join(f'`{n}`' for n in missing)}."
        )
    lines += [
        f"`{each['name']}` of seed {each['seed']} has no result: {each['failed']}." for each in group.failed
    ]
    for steps in group.steps:
        lines += [f"### {words}: {steps} step{'s' if steps > 1 else ''}", quality_table(group, steps)]
    machines = [run["machine"] for runs in group.runs.values() for run in runs]
    said = dict.fromkeys(f"{m['processor']}, {m['cores']} cores, PyTorch {m['torch']}" for m in machines)
    lines += [
        f"### {words}: what training took",
        cost_table(group),
        "Seconds are processor time of a training's single thread, with all methods measured in turn. A ~ marks the"
        " wall-clock time of the runs themselves, beside other processes; a - stands for runs on another processor than"
        " the calibration's. Memory is the peak of the process above its"
        " memory before the networks are loaded, as the mean over seeds with its 95 % interval."
        f" {'; '.join(said)}.",
    ]
    if _pictures(group, images / f"{name}-samples.png"):
        words = "Samples of every method, the same noise down a column"
        lines.append(f"![{words}](images/compare/{name}-samples.png)")
    return "\n\n".join(lines)


def not_run(group: Group) -> list[str]:
    """Return the planned runs that have neither a result nor a recorded failure."""
    known = {*group.runs, *(each["name"] for each in group.failed)}
    planned = (v.name for v in PLANS[group.teacher].variants if group.budget in v.budgets)
    return [name for name in planned if name not in known]


def goal_sentence(group: Group) -> str:
    """Return whether the goal of this benchmark is reached, in words; "" if it has none."""
    goal = PLANS[group.teacher].goal
    if goal is None:
        return ""
    teacher = group.reference["rows"]["teacher"][group.accuracy]
    students = {name: group.interval(name, group.accuracy, goal.steps) for name in group.runs}
    name, *others = sorted(students, key=lambda n: -students[n].value)
    student, share = students[name], students[name].value / teacher["value"]
    # error of a ratio: squares of relative errors add
    relative = math.hypot(
        (student.high - student.low) / 2 / student.value,
        (teacher["high"] - teacher["low"]) / 2 / teacher["value"],
    )
    said = (
        f"Goal: the teacher's {group.accuracy.replace('_', ' ')} is at least {goal.teacher:.0%}. It is"
        f" {cell(teacher, 'accuracy')} %: **{_verdict_words(teacher['value'] >= goal.teacher)}**. The best student at"
        f" {goal.steps} steps has at least {goal.share:.0%} of it. It is `{name}` with {cell(student, 'accuracy')} %,"
        f" which is {share:.0%} [{share * (1 - relative):.0%}, {share * (1 + relative):.0%}]:"
        f" **{_verdict_words(share >= goal.share)}**."
    )
    if not others:
        return said
    ahead = gain(group, name, others[0], group.accuracy, goal.steps)
    return (
        f"{said} It is the best of {len(students)} by the same numbers; the next, `{others[0]}`, is"
        f" {cell(ahead, 'accuracy')} points behind."
    )


def _verdict_words(kept: bool) -> str:
    return "reached" if kept else "not reached"


def _pictures(group: Group, place: Path) -> bool:
    """Compose a picture of all methods at the fewest and the most steps (seed 0); return whether any exists."""
    steps, references = group.steps, sorted(group.reference["rows"])
    rows = []
    teacher = group.folder.parent / "teacher.png"
    if teacher.is_file():
        rows.append((f"teacher, {group.reference['steps']} steps", teacher, 0, len(references)))
    for name in group.runs:
        picture = group.folder / f"{name}-0.png"
        if picture.is_file():
            rows += [(f"{name}, {s}", picture, steps.index(s), len(steps)) for s in (steps[0], steps[-1])]
    if rows:
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic(place) as temporary:
            composed_grid(rows).save(temporary, format="PNG", optimize=True)
    return bool(rows)


def _note(notes: dict[str, str], name: str) -> list[str]:
    return [notes[name]] if name in notes else []


def write(docs: Path) -> None:
    """Write ``docs``/results.md and ``docs``/images/compare from ``docs``/results and ``docs``/results-notes.md."""
    text = page(load(docs / "results"), read_notes(docs / "results-notes.md"), docs / "images/compare")
    with atomic(docs / "results.md") as temporary:
        temporary.write_text(wrap(text))

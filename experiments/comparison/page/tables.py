"""Tables of the page, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.comparison.page.claims import (
    CLAIMS,
    MEMORY,
    Finding,
    findings,
    memory_verdict,
    verdict_words,
)
from experiments.comparison.page.intervals import Interval
from experiments.comparison.page.results import Group, Results
from experiments.comparison.page.warm_verdict import Length, end
from experiments.comparison.plan import updates_in
from rcm_core.evaluation.bootstrap import Estimate
from rcm_core.evaluation.metric import metric_of
from rcm_core.evaluation.report.formatting import markdown_table
from rcm_core.training.distill import build_method
from rcm_core.units import MIB

BUDGET_WORDS = {"updates": "equal student updates", "time": "equal wall-clock"}
NETWORKS = ("student", "fake", "target", "teacher")


def percent(metric: str) -> bool:
    """Return whether ``metric`` is shown in per cent; "" is a plain number."""
    return metric != "" and metric_of(metric).is_proportion


def cell(value: Interval | Estimate, metric: str) -> str:
    """Format the value with its interval."""
    numbers = value[:3] if isinstance(value, Interval) else (value["value"], value["low"], value["high"])
    scale, digits = (100, 1) if percent(metric) else (1, 2)
    shown = [f"{scale * number:.{digits}f}" for number in numbers]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def quality_table(group: Group, steps: int) -> str:
    """Return a table with a row per method at ``steps``, below the teacher's rows."""
    metrics = group.metrics
    words = {"teacher": f"teacher, {group.reference['steps']} steps", "teacher_1": "teacher, 1 step"}
    rows = [
        [words[name], *(cell(row[m], m) for m in metrics)]
        for name, row in sorted(group.reference["rows"].items())
    ]
    for name in group.runs:
        rows.append([f"`{name}`", *(cell(group.interval(name, m, steps), m) for m in metrics)])
    return markdown_table(["", *(_head(m) for m in metrics)], rows)


def cost_table(group: Group) -> str:
    """Return the table of training costs by method."""
    head = ["", "seeds", "iterations", "student updates", "of them in the chosen students", "points per update",
            "seconds", "s / iteration", "memory MiB",
            "samples through student, fake, target, teacher per iteration"]  # fmt: skip
    rows = []
    for name, runs in group.runs.items():
        first = runs[0]
        numbers = [
            str(len(runs)),
            str(first["iterations"]),
            str(first["student_updates"]),
            ", ".join(str(updates_at_choice(run)) for run in runs),
            str(first["points_per_update"]),
            *_times(group, name),
            format_measured(group.measure(name, "memory_bytes"), 0, MIB),
            ", ".join(f"{calls(first, network):.0f}" for network in NETWORKS),
        ]
        words = f": {first['words']}" if first["words"] else ""
        rows.append([f"`{name}`{words}", *numbers])
    return markdown_table(head, rows)


def _times(group: Group, name: str) -> tuple[str, str]:
    """Return the seconds of a training and of an iteration, marked if they do not come from the calibration."""
    seconds, mark = group.seconds(name), "" if name in group.costs else "~"
    if seconds is None:
        return "-", "-"
    return f"{mark}{seconds:.0f}", f"{mark}{seconds / group.runs[name][0]['iterations']:.3f}"


def format_measured(found: Interval, digits: int, unit: float = 1.0) -> str:
    """Format a measurement, with its interval if it has several seeds."""
    value, low, high = (f"{number / unit:.{digits}f}" for number in found[:3])
    return f"{value} [{low}, {high}]" if found.seeds > 1 else value


def updates_at_choice(run: dict[str, Any]) -> int:
    """Return the number of updates of the selected student; its name contains the iteration."""
    step = int(run["choice"]["name"].split("-")[0].removeprefix("step_"))
    return updates_in(build_method(run["method"], "exact"), step)


def calls(run: dict[str, Any], network: str) -> float:
    """Return the samples that pass forward through ``network`` per iteration, over all kinds."""
    found = run["training"]["forward_per_iteration"]
    return float(sum(n for name, n in found.items() if name.split(".")[0] == network))


def claims_table(results: Results) -> str:
    """Return a table with a row per claim and a column per teacher and budget; memory is measured separately."""
    head = ["published", *(f"`{g.teacher}`, {BUDGET_WORDS[g.budget]}" for g in results.groups)]
    rows = []
    for claim in CLAIMS:
        shown = [verdict_words(findings(claim, group)) for group in results.groups]
        rows.append([f"[{claim.words}](#{claim.name})", *shown])
    apart = f"{memory_verdict(results.memory)} (measured apart)"
    rows.append([f"[{MEMORY.words}](#{MEMORY.name})", apart, *[""] * (len(results.groups) - 1)])
    return markdown_table(head, rows)


def findings_table(found: Sequence[tuple[Group, Finding]]) -> str:
    """Return a table with a row per part of a claim, teacher and budget."""
    rows = [
        [
            f"`{group.teacher}`, {BUDGET_WORDS[group.budget]}",
            finding.part.words,
            cell(finding.gain, "") if finding.gain else "",
            str(finding.gain.seeds) if finding.gain else "",
            _tie(finding),
        ]
        for group, finding in found
    ]
    return markdown_table(["where", "asked", "gain, margin included", "seeds", "verdict"], rows)


def _tie(finding: Finding) -> str:
    """Return the verdict; a part that a tie satisfies is marked if it is a tie."""
    gain = finding.gain
    tie = finding.part.within and gain is not None and gain.low <= 0 <= gain.high
    return f"{finding.verdict}, not told apart" if tie else finding.verdict


def memory_table(memory: dict[str, Any]) -> str:
    """Return a table with a row per case of the memory measurement."""
    words, ours = memory["words"], memory["cases"]["tbcm"]
    measured = {words[name]: found for name, found in memory["cases"].items()}
    for width, found in sorted(memory["scm_vae"].items(), key=lambda item: int(item[0])):
        measured[f"{words['scm_vae']}, VAE of width {width}"] = found
    rows = [
        [
            name,
            f"{found['tensors'] / MIB:.0f}",
            f"{found['resident'] / MIB:.0f}",
            f"{found['seconds']:.2f}",
            f"{ours['tensors'] / found['tensors']:.0%}",
            f"{ours['resident'] / found['resident']:.0%}",
            f"{ours['seconds'] / found['seconds']:.0%}",
        ]
        for name, found in measured.items()
    ]
    head = [
        "",
        "tensors MiB",
        "resident MiB",
        "s / step",
        "TBCM's share of tensors",
        "of resident",
        "of time",
    ]
    return markdown_table(head, rows)


def mixture_table(mixture: dict[str, Any]) -> str:
    """Return a table of Frechet distances to the teacher with a row per run.

    Columns: predictions from all angles and from ranges of angles, and samples on the validation split during training.
    """
    parts = [row["part"] for run in mixture["runs"].values() for row in run["parts"]]
    head = list(dict.fromkeys(parts))
    rows = []
    for name, run in mixture["runs"].items():
        found = {row["part"]: cell(row["frechet_teacher"], "") for row in run["parts"]}
        rows.append([f"`{name}`", *(found.get(part, "") for part in head), _half_and_end(run["candidates"])])
    return markdown_table(["", *head, "sampled in 1 / 2 / 4 steps: at half, at the end"], rows)


def _half_and_end(candidates: list[dict[str, Any]]) -> str:
    return ", ".join(
        " / ".join(f"{score['value']:.1f}" for score in candidate["scores"].values())
        for candidate in candidates
    )


def lengths_table(found: list[Length]) -> str:
    """Return a table with a row per length of the warm trainings, over all seeds."""
    head = ["student updates of the warm start", "score at the end", "gain over the cold start's end", ""]
    return markdown_table(
        head,
        [
            [f"{each.updates} ({each.share:.0%} of the cold start's)", f"{each.score:.2f}",
             cell(each.gain, "") if each.gain.seeds > 1 else f"{each.gain.value:.2f} (one seed)", each.verdict]
            for each in found
        ],
    )  # fmt: skip


def warm_table(study: dict[str, Any]) -> str:
    """Return a table with a row per seed and training of the warm start."""
    rows = []
    for seed in study["seeds"]:
        runs = [("cold", seed["cold"])] + [
            (f"warm, {w['share']:.0%} of the updates", w) for w in seed["warm"]
        ]
        rows.append([str(seed["seed"]), "old student, unchanged", "0", "", cell(seed["untouched"], ""), ""])
        for words, run in runs:
            test = run["rows"]["student_4"]["frechet_teacher"]
            line = [str(seed["seed"]), words, str(run["updates"]), str(run["iterations"])]
            rows.append([*line, cell(end(run, study["metric"]), ""), cell(test, "")])
    head = ["seed", "start", "student updates", "iterations", "validation score at the end",
            "Frechet to teacher, 4 steps, test split"]  # fmt: skip
    return markdown_table(head, rows)


def _head(metric: str) -> str:
    record = metric_of(metric)
    return record.column if record.name == metric else f"{metric.replace('_', ' ')} %"

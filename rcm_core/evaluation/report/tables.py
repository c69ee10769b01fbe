"""Tables of results, candidates and lineage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rcm_core.evaluation.metric import part_names, shown_metrics
from rcm_core.evaluation.report.finished_run import Run, count_steps
from rcm_core.evaluation.report.formatting import data_size, duration, escape, interval, number, per_sample


def columns(run: Run) -> list[tuple[str, str, str]]:
    """Return key, title and small print of the metrics in the table of results."""
    known = run.metrics["teacher"]
    return [
        (m.name, f"{m.title} {m.arrow}", m.note.format(reference=run.reference))
        for m in shown_metrics("results")
        if m.name in known
    ]


def results(run: Run) -> str:
    """Render every sampler's numbers with their 95 % intervals."""
    head = "".join(f'<th scope="col">{title}<small>{what}</small></th>' for _, title, what in columns(run))
    body = []
    for sampler in run.samplers:
        row = run.metrics[sampler.key]
        cells = "".join(_cell(number(row[key]["value"]), interval(row[key])) for key, _, _ in columns(run))
        time = row["seconds_per_sample"]
        spread = f"{per_sample(time['low'])} – {per_sample(time['high'])}"
        calls = f"<td><b>{row['network_calls']['value']:g}</b></td>"
        kind = ' class="student"' if sampler.student else ""
        name = f'<th scope="row">{escape(sampler.name)}<small>n = {row[run.distance]["n"]:,}</small></th>'
        body.append(f"<tr{kind}>{name}{cells}{calls}{_cell(per_sample(time['value']), spread)}</tr>")
    return (
        f'<table class="numbers"><thead><tr><th scope="col">Sampler</th>{head}'
        '<th scope="col">Calls<small>of the network</small></th>'
        '<th scope="col">Time ↓<small>per sample</small></th>'
        f"</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def categories(run: Run) -> str:
    """Render accuracy by category and the judge's further measures with 95 % intervals; empty without either."""
    known = run.metrics["teacher"]
    parts = sorted(set(part_names("accuracy", known)) - {"accuracy_mean"})
    measures = (metric.name for metric in shown_metrics("measures"))
    keys = [*parts, *(key for key in ("accuracy_mean", *measures) if key in known)]
    titles = [escape(key.removeprefix("accuracy_").replace("_", " ")) for key in keys]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = []
    for sampler in run.samplers:
        row = run.metrics[sampler.key]
        cells = "".join(_cell(number(row[key]["value"]), interval(row[key])) for key in keys)
        kind = ' class="student"' if sampler.student else ""
        body.append(f'<tr{kind}><th scope="row">{escape(sampler.name)}</th>{cells}</tr>')
    if not keys:
        return ""
    return (
        f'<table class="numbers"><thead><tr><th scope="col">Sampler</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def candidates(selection: dict[str, Any]) -> str:
    """Render every candidate's score and mark the chosen one."""
    steps = [str(step) for step in selection["steps"]]
    head = "".join(f'<th scope="col">{s} step{"s" if s != "1" else ""}</th>' for s in steps)
    body = []
    for candidate in selection["candidates"]:
        chosen = candidate["name"] == selection["choice"]["name"]
        cells = "".join(
            _cell(number(e["value"]), interval(e))
            for e in (candidate["score"], *(candidate["scores"][s] for s in steps))
        )
        mark = '<span class="mark">chosen</span>' if chosen else ""
        body.append(
            f'<tr{" class=student" if chosen else ""}><th scope="row">{escape(candidate["name"])}{mark}</th>'
            f"<td>{candidate['step']:,}</td><td>{candidate['ema']:g}</td>{cells}</tr>"
        )
    return (
        '<table class="numbers"><thead><tr><th scope="col">Candidate</th><th scope="col">Iteration</th>'
        f'<th scope="col">EMA</th><th scope="col">Mean</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )


def stages(records: dict[str, dict[str, Any]]) -> str:
    """Render wall time, memory, device and seed of every stage."""
    longest = max((record["seconds"] for record in records.values()), default=1.0) or 1.0
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f'<td class="bar"><i style="width:{100 * record["seconds"] / longest:.1f}%"></i></td>'
        f"<td>{duration(record['seconds'])}</td><td>{data_size(record['peak_memory_bytes'])}</td>"
        f"<td>{_plain(record['device'])}</td><td>{_plain(record['seed'])}</td></tr>"
        for name, record in records.items()
    )
    total = duration(sum(record["seconds"] for record in records.values()))
    return (
        '<table class="numbers stages"><thead><tr><th scope="col">Stage</th><th></th>'
        '<th scope="col">Time</th>'
        '<th scope="col">Peak memory</th><th scope="col">Device</th><th scope="col">Seed</th></tr></thead>'
        f'<tbody>{body}</tbody><tfoot><tr><th scope="row">All</th><td></td><td>{total}</td>'
        "<td></td><td></td><td></td></tr></tfoot></table>"
    )


def lineage(run: Run) -> str:
    """Render the student's lineage: teacher, method and its parameters, code, versions."""
    teacher, train = run.teacher, run.records.get("train", {})
    parameters = train.get("parameters", {})
    method = dict(parameters.get("method", {}))
    gate = teacher.get("gate") or {}
    settings = f"guidance {teacher['guidance']:g}, shift {teacher['shift']:g}"
    grid = teacher.get("grid", "scheduler")
    solver = teacher["solver"] if grid == "scheduler" else f"{teacher['solver']} ({grid} times)"
    sampled = f"{solver}, {count_steps(teacher['steps'])}, {settings}"
    sampler = run.selection["sampler"]
    times = [(count_steps(len(angles)), angles) for angles in sampler["times"]]
    blocks = [
        _facts("Teacher", [
            ("Source", teacher["source"]), ("Family", teacher["family"]), ("Licence", teacher["licence"]),
            ("Benchmark", teacher["data"]), ("Sampling", sampled),
            ("Shape", " × ".join(map(str, teacher["shape"]))),
            *((f"Gate: {key.replace('_', ' ')}", f"{value:.3f}") for key, value in sorted(gate.items())),
            ("Content hash", teacher["hash"]),
        ]),
        _facts(f"Method: {method.pop('name', 'not recorded')}", sorted(method.items())),
        _facts("Sampler of the student: angles", [("Kind", sampler["kind"]), *times]),
        _facts("Training", sorted(parameters.get("train", {}).items())),
        _facts("Code", [("Commit", _one(run, "commit")), *_versions(train)]),
    ]  # fmt: skip
    return f'<div class="facts">{"".join(blocks)}</div>'


def _versions(record: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, version or "not installed") for name, version in sorted(record.get("versions", {}).items())
    ]


def _one(run: Run, key: str) -> str:
    values = list(dict.fromkeys(str(record[key]) for record in run.records.values()))
    return ", ".join(values) if values else "not recorded"


def _facts(title: str, facts: Iterable[tuple[str, Any]]) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{_plain(value)}</dd>" for key, value in facts)
    return f"<section><h3>{escape(title)}</h3><dl>{rows}</dl></section>"


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{escape(str(k))} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(v) for v in value)
    return escape(f"{value:g}" if isinstance(value, float) else str(value))


def _cell(value: str, spread: str) -> str:
    return f"<td><b>{value}</b><small>{spread}</small></td>"

"""The top of the page: a summary sentence and six numbers."""

from __future__ import annotations

from rcm_core.evaluation.metric import metric_of
from rcm_core.evaluation.report.finished_run import Run, Sampler, count_steps
from rcm_core.evaluation.report.formatting import escape, interval, number, per_sample

SEES = "sees what the prompt asked for"


def header(run: Run, title: str) -> str:
    """Render the title and a comparison of the student's cost and accuracy with the teacher's."""
    students, row = _students(run), run.metrics
    fastest = students[-1]
    train = run.records.get("train", {}).get("parameters", {})
    method = escape(train.get("method", {}).get("name", "distillation"))
    calls = row["teacher"]["network_calls"]["value"]
    counts = _either([str(student.steps) for student in students[::-1]])
    return (
        f'<header><h1>{escape(title)}</h1><p class="lead">'
        f"A teacher that needs <b>{count_steps(run.teacher['steps'])} and {calls:g} network calls</b>"
        f" for a sample became a student that needs <b>{counts}</b>: by {method}, on"
        f" {escape(run.teacher['data'].replace('_', ' '))}. With {count_steps(fastest.steps)} it is"
        f" <b>{number(_speed(run, fastest))} times as fast</b>, and in"
        f" <b>{100 * row[fastest.key]['accuracy']['value']:.1f} %</b> of its samples an independent"
        f" judge {escape(row['protocol'].get('finding', SEES))}.</p></header>"
    )


def cards(run: Run) -> str:
    """Render speed, Frechet distance, accuracy and diversity at the fewest and the most steps."""
    most, fewest = _students(run)[0], _students(run)[-1]
    key, title = run.distance, "Fréchet distance"
    if key == "frechet_teacher":
        title += f" to {run.reference}"
    shown = [_speed_card(run, fewest, True), _ratio_card(run, fewest, key, title)]
    if most != fewest:
        shown += [_ratio_card(run, most, key, title), _speed_card(run, most, False)]
    shown += [_accuracy_card(run, fewest), _ratio_card(run, fewest, "diversity", "Diversity")]
    return f'<div class="cards">{"".join(shown)}</div>'


def _either(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _students(run: Run) -> list[Sampler]:
    return [sampler for sampler in run.samplers if sampler.student]


def _speed(run: Run, student: Sampler) -> float:
    seconds = [run.metrics[key]["seconds_per_sample"]["value"] for key in ("teacher", student.key)]
    speed: float = seconds[0] / seconds[1]
    return speed


def _speed_card(run: Run, student: Sampler, first: bool) -> str:
    mine, other = (run.metrics[key] for key in (student.key, "teacher"))
    calls = mine["network_calls"]["value"]
    words = (
        f"{per_sample(mine['seconds_per_sample']['value'])} for a sample instead of"
        f" {per_sample(other['seconds_per_sample']['value'])};"
        f" {calls:g} network call{'s' if calls != 1 else ''} instead of {other['network_calls']['value']:g}"
    )
    return _card(f"Faster, {count_steps(student.steps)}", number(_speed(run, student)), "×", words, first)


def _ratio_card(run: Run, student: Sampler, key: str, title: str) -> str:
    mine, other = (run.metrics[name][key] for name in (student.key, "teacher"))
    words = (
        f"of the teacher's: {number(mine['value'])} ({interval(mine)}) against {number(other['value'])}"
        f" ({interval(other)}); {metric_of(key).direction}"
    )
    return _card(
        f"{title}, {count_steps(student.steps)}", f"{mine['value'] / other['value']:.2f}", "×", words
    )


def _accuracy_card(run: Run, student: Sampler) -> str:
    mine, other = (run.metrics[name]["accuracy"] for name in (student.key, "teacher"))
    words = (
        f"of samples are right: the judge {run.metrics['protocol'].get('finding', SEES)} (95 % interval"
        f" {100 * mine['low']:.1f} – {100 * mine['high']:.1f} %); the teacher's: {100 * other['value']:.1f} %"
    )
    return _card(f"Prompt accuracy, {count_steps(student.steps)}", f"{100 * mine['value']:.1f}", "%", words)


def _card(title: str, big: str, unit: str, words: str, first: bool = False) -> str:
    return (
        f'<div class="card{" first" if first else ""}"><h3>{escape(title)}</h3>'
        f'<div class="big">{escape(big)}<span>{escape(unit)}</span></div><p>{escape(words)}</p></div>'
    )

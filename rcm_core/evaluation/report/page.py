"""The report page: summary, samples, numbers, training, selection, lineage."""

from __future__ import annotations

from rcm_core.evaluation.report import figures, health, tables
from rcm_core.evaluation.report.finished_run import Run, read_run
from rcm_core.evaluation.report.formatting import escape
from rcm_core.evaluation.report.headline import cards, header
from rcm_core.evaluation.report.samples import grid, per_cell
from rcm_core.evaluation.report.style import STYLE
from rcm_core.storage.run_folder import RunFolder


def render(run_folder: RunFolder, title: str, prompts: int) -> str:
    """Render ``report.html`` of a run, with ``prompts`` rows of samples.

    The same files give the same bytes; the page loads nothing from elsewhere. InputError names a file that is
    missing or inconsistent.
    """
    run = read_run(run_folder)
    panels = (
        header(run, title), health.warning(run), cards(run), _samples(run, prompts), _numbers(run), *_categories(run),
        _training(run), _selection(run), _lineage(run), _protocol(run),
    )  # fmt: skip
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(panels)
        + "\n</main>\n</body>\n</html>\n"
    )


def _panel(title: str, note: str, *content: str) -> str:
    return (
        f'<section class="panel"><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>'
        f"{''.join(content)}</section>"
    )


def _figure(svg: str, caption: str) -> str:
    words = escape(caption)
    return f'<figure role="img" aria-label="{words}">{svg}<figcaption>{words}</figcaption></figure>'


def _samples(run: Run, prompts: int) -> str:
    note = (
        f"The first {per_cell(run)} samples of each prompt, not picked. Prompts were not seen in training;"
        " along a row every sampler starts from the same noise."
    )
    return _panel("Samples, side by side", note, f'<div class="scroll">{grid(run, prompts)}</div>')


def _numbers(run: Run) -> str:
    held = "held-out real images" if run.distance == "frechet" else run.reference
    note = f"Against {held} and held-out prompts, with 95 % intervals. Arrows say which way is better."
    return _panel(
        "How good, how fast",
        note,
        f'<div class="scroll">{tables.results(run)}</div>',
        _figure(
            figures.cost_and_quality(run),
            f"Fréchet distance to {held} over the time for a sample.",
        ),
        _figure(
            figures.intervals(run), "Every metric with its 95 % interval; the dashed line is the teacher."
        ),
    )


def _categories(run: Run) -> list[str]:
    table = tables.categories(run)
    if not table:
        return []
    title, note = "What else the judge measures", "Means over the samples, in [0, 1]; higher is better."
    if any(key.startswith("accuracy_") for key in run.metrics["teacher"]):
        title = "Accuracy by category"
        note = (
            "Share of samples that show what the prompt asks for; the mean weighs the categories equally. For clips"
            " also measures of motion."
        )
    return [_panel(title, note, f'<div class="scroll">{table}</div>')]


def _training(run: Run) -> str:
    note = (
        "Averages over the iterations between two points; the tangent norm is that before normalisation. Dots are"
        " probes: one-step samples for held-out trajectories, compared with the teacher's."
    )
    chart = _figure(figures.training(run.curves), "What training logged, over iterations.")
    return _panel("Training", note, health.course(run), chart)


def _selection(run: Run) -> str:
    many = len(run.selection["candidates"])
    return _panel(
        "Choice of the student",
        run.selection["reason"],
        _figure(
            figures.candidates(run.selection),
            "Every candidate on the validation split; the ring is the choice.",
        ),
        f"<details{' open' if many <= 12 else ''}><summary>All {many} candidates</summary>"
        f'<div class="scroll">{tables.candidates(run.selection)}</div></details>',
    )


def _lineage(run: Run) -> str:
    note = "Everything that determines this student, and its cost."
    return _panel(
        "Lineage", note, f'<div class="scroll">{tables.stages(run.records)}</div>', tables.lineage(run)
    )


def _protocol(run: Run) -> str:
    protocol = run.metrics["protocol"]
    return _panel(
        "Protocol",
        str(protocol["description"]),
        f'<p class="note">Protocol hash <code>{escape(str(protocol["hash"]))}</code>. An interval is for the'
        " score expected at this number of samples against these real images.</p>",
    )

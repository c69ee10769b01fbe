"""The figures of the report: no text overlaps another."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from reports import PROMPTS, made_up_run

from rcm_core.evaluation.report import figures
from rcm_core.evaluation.report.finished_run import read_run
from rcm_core.evaluation.teacher_features import IMPORTED
from rcm_core.storage.files import write_json
from rcm_core.storage.run_folder import RunFolder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return made_up_run(tmp_path / "runs", (1, 1, 8, 8), PROMPTS)


def test_no_text_of_a_figure_overlaps_another(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names of references, points at the same place, many curves and many numbers of steps."""
    drawn: list[Figure] = []
    monkeypatch.setattr(figures, "_svg", lambda figure: drawn.append(figure) or figures.wrap_titles(figure))
    metrics = json.loads((runs / "evaluate/metrics.json").read_text())
    metrics["protocol"]["reference"] = IMPORTED
    metrics["teacher_1"] = metrics["student_1"]
    write_json(runs / "evaluate/metrics.json", metrics)
    run = read_run(RunFolder(runs))
    selection = json.loads(json.dumps(run.selection)) | {"steps": [1, 2, 4, 8, 16]}
    for candidate in selection["candidates"]:
        candidate["scores"] |= {"8": candidate["score"], "16": candidate["score"]}
    figures.cost_and_quality(run)
    figures.intervals(run)
    figures.training({key: [(1.0, 2.0), (100.0, 3.0)] for key in figures.CURVES})
    figures.candidates(selection)
    for figure in drawn:
        figure.draw_without_rendering()
        hidden = not_drawn(figure)
        texts = [
            t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in hidden
        ]
        boxes = [t.get_window_extent().shrunk(0.99, 0.99) for t in texts]
        for (one, box), (other, around) in combinations(zip(texts, boxes), 2):
            assert not box.overlaps(around), (one.get_text(), other.get_text())


def not_drawn(figure: Figure) -> set[Text]:
    """Return texts of hidden axes, and tick labels beyond the limits of their axes."""
    found: set[Text] = set()
    for axes in figure.axes:
        frame = axes.get_window_extent()
        if not axes.get_visible():
            found.update(axes.findobj(Text))
        for low, high, labels in (
            (frame.x0, frame.x1, axes.get_xticklabels()),
            (frame.y0, frame.y1, axes.get_yticklabels()),
        ):
            for label in labels:
                box = label.get_window_extent()
                middle = (
                    sum((box.x0, box.x1) if low == frame.x0 and high == frame.x1 else (box.y0, box.y1)) / 2
                )
                if not low - 1 <= middle <= high + 1:
                    found.add(label)
    return found

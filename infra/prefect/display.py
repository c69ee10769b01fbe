"""A run on a terminal: its lines, and below them bars for the stages and for the stage that runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

RUNNING = re.compile(r"Running stage '(\w+)'")
COUNT = re.compile(r"(?:\w+: |step )(\d+)/(\d+)\b")
"""``step 50/1500  loss ...`` and ``trajectories: 3/10 shards``."""


class Display(Protocol):
    """Where a run is shown."""

    def line(self, text: str) -> None:
        """A line of the run's log."""
        ...

    def done(self, stages: int) -> None:
        """How many stages are finished."""
        ...


class Plain:
    """Lines alone, for files and pipes."""

    def line(self, text: str) -> None:
        print(text, flush=True)

    def done(self, stages: int) -> None:
        """Not shown: the lines say what runs."""


class Bars:
    """Lines above, bars with elapsed and remaining time below."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn("{task.description:>12}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            Remaining(),
        )
        self.progress = Progress(*columns)
        self._stages = self.progress.add_task("stages", total=total)
        self._stage = self.progress.add_task("", total=None, visible=False)
        self._name = ""

    def line(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False)
        if found := RUNNING.match(text):
            self._name = found.group(1)
            self.progress.reset(self._stage, description=self._name, visible=False)
        elif found := COUNT.match(text):
            completed, total = map(int, found.groups())
            self.progress.update(self._stage, completed=completed, total=total, visible=completed < total)

    def done(self, stages: int) -> None:
        self.progress.update(self._stages, completed=stages)


@contextmanager
def display(stages: int) -> Iterator[Display]:
    """Bars on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        yield Plain()
        return
    bars = Bars(stages)
    with bars.progress:
        yield bars

"""Progress of a run: its log lines, the current stage and the time left; on a terminal with bars."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from infra.prefect.pace import STAGES, Pace, format_minutes

RUNNING = re.compile(r"Running stage '(\w+)'")
SKIPPED = re.compile(r"Stage '(\w+)' (?:didn't change, skipping|is cached - skipping run)")
COUNT = re.compile(r"(?:\w+: |step )(\d+)/(\d+)\b")
"""Pattern of counts in log lines: ``step 50/1500  loss ...`` and ``trajectories: 3/10 shards``."""


class Display(Protocol):
    """Interface of the two displays of a run."""

    def line(self, text: str) -> None:
        """Show a line of the run's log."""
        ...

    def count_done(self, stages: int) -> None:
        """Show the number of finished stages."""
        ...


class Plain:
    """Display for files and pipes: log lines, and a progress line at the start of a stage and every half minute."""

    EVERY_SECONDS = 30.0

    def __init__(self, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self.pace, self._clock, self._said = pace, clock, float("-inf")

    def line(self, text: str) -> None:
        print(text, flush=True)
        began = observe(self.pace, text)
        if began or (COUNT.match(text) and self._clock() - self._said >= self.EVERY_SECONDS):
            self._said = self._clock()
            print(self.pace.sentence(), flush=True)

    def count_done(self, stages: int) -> None:
        """Show nothing: the log lines name the stage."""


class Bars:
    """Display for terminals: log lines, below them a bar for all stages with the time left and one for this stage."""

    def __init__(self, pace: Pace) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description:>12}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self.pace = pace
        self.progress = Progress(*columns, expand=True)
        self._stages = self.progress.add_task("stages", total=len(STAGES), left="")
        self._stage = self.progress.add_task("", total=None, visible=False, left="")

    def line(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)
        if observe(self.pace, text):
            self.progress.reset(self._stage, description=self.pace.stage, visible=False)
        elif found := COUNT.match(text):
            completed, total = map(int, found.groups())
            self.progress.update(self._stage, completed=completed, total=total, visible=completed < total)

    def count_done(self, stages: int) -> None:
        left = self.pace.seconds_left()
        said = "" if left is None or stages == len(STAGES) else f"{format_minutes(left)} left"
        self.progress.update(self._stages, completed=stages, left=said)


def observe(pace: Pace, text: str) -> bool:
    """Update ``pace`` from a log line; return whether the line starts a stage."""
    if found := RUNNING.match(text) or SKIPPED.match(text):
        if found[1] in STAGES:
            pace.begin(found[1])
        return found[1] in STAGES and not SKIPPED.match(text)
    if pace.stage and (found := COUNT.match(text)):
        pace.count(int(found[1]), int(found[2]))
    return False


@contextmanager
def display(pace: Pace) -> Iterator[Display]:
    """Yield bars on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        yield Plain(pace)
        return
    bars = Bars(pace)
    with bars.progress:
        yield bars

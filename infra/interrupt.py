"""Handlers of SIGTERM and SIGINT for the processes of this project.

In a process that trains, the first SIGTERM is a preemption notice instead: ``infra/executors/preemption.py``.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)


def unwind_on_signals() -> None:
    """Let SIGTERM and SIGINT unwind this process: it removes its temporary files and ends its children.

    The exit status is the shell's status for the signal.
    """
    for number in ENDING:
        signal.signal(number, _unwind)


def end_on_sigterm() -> None:
    """Let SIGTERM unwind this process. A terminal's SIGINT does not reach it, so its parent must end it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unwind(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Raise SystemExit and ignore further signals, which would interrupt the cleanup."""
    for ending in ENDING:
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)

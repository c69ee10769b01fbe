"""Answers to SIGTERM and SIGINT of the processes that are started here."""

from __future__ import annotations

import signal
import sys
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGINT)


def unwind_on_signals() -> None:
    """Let SIGTERM and SIGINT unwind this process: temporary files go, and what it has started ends.

    The exit status is the shell's for the signal.
    """
    for number in ENDING:
        signal.signal(number, _unwind)


def end_on_sigterm() -> None:
    """Let SIGTERM unwind this process, which a terminal's SIGINT does not reach: its owner ends it."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _unwind(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """A second signal would cut the cleaning short, so it is ignored."""
    for ending in ENDING:
        signal.signal(ending, signal.SIG_IGN)
    raise SystemExit(128 + number)

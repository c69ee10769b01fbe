"""Preemption notice: SIGTERM from a spot-instance agent, Kubernetes or torchrun.

The trainer finishes its step, writes a checkpoint and ends with status ``LEFT``; Ray restarts its workers instead.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LEFT = 128 + signal.SIGTERM


def listen(told: threading.Event) -> None:
    """Let the first SIGTERM set ``told`` and the second call the current handler. Main thread only."""
    before = signal.getsignal(signal.SIGTERM)

    def tell(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        told.set()
        signal.signal(number, before)

    signal.signal(signal.SIGTERM, tell)


@contextmanager
def notice() -> Iterator[threading.Event]:
    """Yield an event that the first SIGTERM inside the block sets; outside the main thread nothing sets it."""
    told, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    listen(told)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)

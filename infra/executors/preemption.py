"""Notice to leave: what a spot machine's agent, Kubernetes or torchrun gives with SIGTERM."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LEFT = 128 + signal.SIGTERM


def listen(told: threading.Event) -> None:
    """From now on the first SIGTERM sets ``told``, a second does what it does now. In the main thread only."""
    before = signal.getsignal(signal.SIGTERM)

    def tell(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        told.set()
        signal.signal(number, before)

    signal.signal(signal.SIGTERM, tell)


@contextmanager
def notice() -> Iterator[threading.Event]:
    """Set by the first SIGTERM inside the block; never, if this is not the main thread."""
    told, before = threading.Event(), signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    listen(told)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)

"""Cost of a training: samples through each network, seconds (also across interruptions) and memory."""

from __future__ import annotations

import json
import os
import platform
import resource
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

from torch import nn

from rcm_core.execution import TrainContext
from rcm_core.networks.denoiser import Denoiser
from rcm_core.preflight.network_calls import kind_of
from rcm_core.record import version
from rcm_core.storage.files import write_json
from rcm_core.training.trainer import Trainer

PLACE = "measured.json"


def networks_of(trainer: Trainer) -> dict[str, Denoiser]:
    """Return the networks by role, including the frozen teacher."""
    every: Mapping[str, nn.Module] = {**trainer.modules, "teacher": trainer.networks.teacher}
    return {role: net for role, net in every.items() if isinstance(net, Denoiser)}


@contextmanager
def count_samples(
    networks: Mapping[str, Denoiser], step: Callable[[], int]
) -> Iterator[dict[int, Counter[str]]]:
    """Count the samples that pass forward through each network in the block, by ``role.kind`` and by ``step()``.

    Kinds: "plain" (no gradient), "gradient" (a backward pass follows), "tangent" (with forward-mode AD, about two
    passes' work). Guidance counts twice, as it computes twice.
    """
    counts: dict[int, Counter[str]] = defaultdict(Counter)

    def counting(role: str) -> Any:
        def before(module: nn.Module, inputs: Any) -> None:  # noqa: ARG001
            counts[step()][f"{role}.{kind_of(inputs[0])}"] += len(inputs[0])

        return before

    with ExitStack() as stack:
        for role, net in networks.items():
            stack.callback(net.register_forward_pre_hook(counting(role)).remove)
        yield counts


class Clock:
    """A TrainContext that records the time of each checkpoint, so that a resumed training has a time too.

    Create it before the networks: its ``memory`` is that of the process without them.
    """

    def __init__(self, inner: TrainContext) -> None:
        self.inner, self.rank, self.world = inner, inner.rank, inner.world
        self.marks: list[tuple[int, float]] = []
        self.memory = resident()
        reset_peak()

    def start(self, step: int) -> None:
        """Record that training starts or resumes at ``step``."""
        self.marks = [(step, time.perf_counter())]

    def resume(self) -> Path | None:
        return self.inner.resume()

    def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
        self.inner.report(scalars, checkpoint, step)
        self.marks.append((step, time.perf_counter()))

    def leaving(self) -> bool:
        return self.inner.leaving()

    def leave(self) -> NoReturn:
        self.inner.leave()

    @property
    def spent(self) -> tuple[range, float]:
        """Return the iterations between the first and the last mark, and their seconds."""
        (first, began), (last, ended) = self.marks[0], self.marks[-1]
        return range(first, last), ended - began


def measure(trainer: Trainer, clock: Clock, place: Path, key: str) -> None:
    """Run ``trainer`` and add its cost to ``place``; a file of another training ``key`` is replaced.

    Iterations that are repeated after an interruption count once: iterations and passes are counted up to checkpoints.
    """
    clock.start(trainer.step)
    counts: dict[int, Counter[str]] = {}
    try:
        with count_samples(networks_of(trainer), lambda: trainer.step) as counts:
            trainer.run()
    finally:
        iterations, seconds = clock.spent
        if iterations:
            session = {
                "iterations": len(iterations),
                "seconds": seconds,
                "memory_before_bytes": clock.memory,
                "memory_peak_bytes": peak_resident(),
                "whole": trainer.step == trainer.settings.iterations,
                "forward": _total(counts[i] for i in iterations),
            }
            write_json(place, {"key": key, "sessions": [*sessions(place, key), session]})


def sessions(place: Path, key: str) -> list[dict[str, Any]]:
    """Return the sessions of the training ``key``, oldest first."""
    known = json.loads(place.read_text()) if place.is_file() else {}
    return known["sessions"] if known.get("key") == key else []


def summary(found: list[dict[str, Any]], iterations: int) -> dict[str, Any]:
    """Summarise all sessions of one training: seconds, memory, forward passes per iteration."""
    steps = sum(s["iterations"] for s in found)
    rate = sum(s["seconds"] for s in found) / steps
    passes = _total(s["forward"] for s in found)
    return {
        "seconds_per_iteration": rate,
        "seconds": rate * iterations,
        "interrupted": len(found) > 1,
        "memory_bytes": max(s["memory_peak_bytes"] - s["memory_before_bytes"] for s in found),
        "memory_peak_bytes": max(s["memory_peak_bytes"] for s in found),
        "forward_per_iteration": {k: n / steps for k, n in passes.items()},
    }


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for each in counts:
        found.update(each)
    return dict(sorted(found.items()))


def resident() -> int:
    """Return the resident bytes of this process."""
    return _status("VmRSS")


def peak_resident() -> int:
    """Return the peak of the resident bytes since ``reset_peak``."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Reset the peak; if the kernel cannot, the peak is that of the whole process."""
    place = Path("/proc/self/clear_refs")
    if os.access(place, os.W_OK):
        place.write_text("5")


def _status(name: str) -> int:
    place = Path("/proc/self/status")
    if not place.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    fields = dict(line.split(":", 1) for line in place.read_text().splitlines())
    return int(fields[name].split()[0]) * 1024


def machine() -> dict[str, Any]:
    """Describe the machine and the versions on which the measurements depend."""
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "system": f"{platform.machine()} {platform.system()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers")},
    }


def _processor() -> str:
    place = Path("/proc/cpuinfo")
    lines = place.read_text().splitlines() if place.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")

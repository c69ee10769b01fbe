"""Run the rehearsals that estimates need: each once, several at a time, with the results kept on disk.

A result depends on the task, on the code that is rehearsed, and on Python, PyTorch and diffusers. The name of its file
is a digest of all of these.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rcm_core.code_hash import code_hash
from rcm_core.config.sections import Params
from rcm_core.preflight.dry_run import PARTS, Rehearsal, Take, rehearse
from rcm_core.preflight.memory_ledger import Peak, Phase
from rcm_core.preflight.network_calls import Kind
from rcm_core.preflight.teacher_spec import Model
from rcm_core.record import choices_of
from rcm_core.registry import find_family
from rcm_core.storage.files import atomic

LIBRARIES = ("torch", "diffusers")


class Task(NamedTuple):
    """One rehearsal, as arguments that another process can take."""

    teacher: str
    config: Mapping[str, Any]
    """Configuration of the network, with the rehearsed number of blocks."""
    shape: tuple[int, ...]
    text: int
    params: Params
    """Parameters with at most ``PARTS`` parts in a batch."""
    alike: Sequence[Kind]
    fused: bool

    @property
    def key(self) -> str:
        """Hex digest of everything the result depends on."""
        params = self.params
        facts = {
            "network": [params.teacher.family, dict(self.config), self.shape, self.text],
            "teacher": [params.teacher.guidance, params.teacher.steps],
            "method": params.method,
            "train": params.train.model_dump(mode="json"),
            "steps": [kind.step for kind in self.alike],
            "fused": self.fused,
            "code": _code(tuple(choices_of(params).items())),
            "versions": [sys.version, *map(version, LIBRARIES)],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@cache
def _code(choices: tuple[tuple[str, str], ...]) -> str:
    return code_hash("rcm_core.preflight.dry_run", dict(choices))


Run = Callable[[Callable[[Task], Rehearsal], Sequence[Task]], Iterator[Rehearsal]]
"""``map``, or the same in other processes."""


class Rehearsals:
    """The results of tasks. ``tell`` hears which layout is rehearsed, and nothing if its results are known."""

    def __init__(
        self, tell: Callable[[str], None] = lambda _: None, folder: Path | None = None, run: Run = map
    ) -> None:
        self.tell, self.folder, self.run = tell, folder, run
        self._known: dict[str, Rehearsal] = {}

    def results(self, tasks: Sequence[Task], layout: str) -> list[Rehearsal]:
        """Return the result of each task. Raise InputError for what the training would refuse."""
        keys = [task.key for task in tasks]
        new = {key: task for key, task in zip(keys, tasks) if not self._is_known(key)}
        if new:
            self.tell(layout)
        for key, found in zip(new, self._rehearse(list(new.values()))):
            self._known[key] = found
            self._keep(key, found)
        return [self._known[key] for key in keys]

    def _rehearse(self, tasks: Sequence[Task]) -> list[Rehearsal]:
        try:
            return list(self.run(_run, tasks))
        except BrokenExecutor:
            self.tell("again, in this process: another one was killed, perhaps for lack of memory")
            self.run = map
            return list(map(_run, tasks))

    def _is_known(self, key: str) -> bool:
        if key not in self._known and self.folder is not None:
            kept = _read(self.folder / key)
            if kept is not None:
                self._known[key] = kept
        return key in self._known

    def _keep(self, key: str, found: Rehearsal) -> None:
        if self.folder is None:
            return
        try:
            with atomic(self.folder / key) as temporary:
                temporary.write_bytes(_text(found))
        except OSError as error:  # the answer does not depend on it
            self.tell(f"{self.folder} cannot be written ({error.strerror}): rehearsals are not kept there")
            self.folder = None


def task_of(model: Model, params: Params, alike: Sequence[Kind], fused: bool) -> Task:
    """Return the rehearsal of ``model``. Batches of more parts than ``PARTS`` are those of ``PARTS`` parts."""
    train = params.train
    parts = min(PARTS, train.accumulate)
    few = train.model_copy(update={"accumulate": parts, "batch": train.batch * parts // train.accumulate})
    params = params.model_copy(update={"train": few})
    return Task(model.name, model.config, model.shape, model.text, params, alike, fused)


def _run(task: Task) -> Rehearsal:
    family = find_family(task.params.teacher.family)
    model = Model(task.teacher, family, task.config, task.shape, task.text)
    return rehearse(model, task.params, task.alike, task.fused)


def _text(found: Rehearsal) -> bytes:
    """Return the digest of the second line, and that line: its numbers exactly and in order."""
    takes = [
        [[[p.name, p.peaks, p.flops] for p in take.phases], list(take.plain.items())] for take in found.takes
    ]
    line = json.dumps([list(found.held.items()), list(found.forward.items()), takes]).encode()
    return hashlib.sha256(line).hexdigest().encode() + b"\n" + line


def _read(path: Path) -> Rehearsal | None:
    """Return the stored result; None if it is missing or damaged, and is to be rehearsed."""
    try:
        digest, _, line = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest != hashlib.sha256(line).hexdigest().encode():
        return None
    held, forward, takes = json.loads(line)
    return Rehearsal(
        dict(held),
        dict(forward),
        [Take([Phase(n, [Peak(*x) for x in peaks], f) for n, peaks, f in ph], dict(p)) for ph, p in takes],
    )

"""The training loop: steps, and between them logs, probes, candidates and checkpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rcm_core.errors import InputError
from rcm_core.monitoring.early_stopping import sentence
from rcm_core.training.checkpointing import checkpoint
from rcm_core.training.checkpointing.async_writer import Writer
from rcm_core.training.checkpointing.candidates import (
    drop_candidates,
    earliest_step,
    keep_newest,
    write_candidates,
)
from rcm_core.training.curves import Curves
from rcm_core.training.probe import Probe
from rcm_core.training.train_step import Stepper


@dataclass(kw_only=True)
class Trainer(Stepper):
    """Steps to the end, with what happens between them at intervals."""

    candidates: Path
    candidate_precision: str = "float32"
    keep_candidates: int | None = None
    """Newest steps whose candidates stay; None: all."""
    probe: Probe | None = None
    step: int = 0
    curves: Curves = field(default_factory=Curves)

    def __post_init__(self) -> None:
        """Restores the newest checkpoint of this run if there is one."""
        super().__post_init__()
        folder = self.context.resume()
        if folder is not None:
            self._restore(folder)

    @property
    def ended(self) -> bool:
        """Whether the last step is done, or the health said that it is enough."""
        return self.step >= self.settings.iterations or self.health.verdict is not None

    def _restore(self, folder: Path) -> None:
        progress = checkpoint.load(folder, self.modules, self.optimisers, self.ema)
        self.step, self.student_updates = progress["step"], progress["student_updates"]
        self.updater.updates = progress["updates"]
        self.curves = Curves(**progress["curves"])
        self.health.restore(progress["health"])
        self.tangent = progress["tangent"]
        self.method = self.build_method(self.tangent)
        ranks = f"{self.context.world} rank{'s' if self.context.world > 1 else ''}"
        self._say(f"resumed at step {self.step} of {self.settings.iterations} on {ranks}")

    def run(self) -> None:
        """Trains to the end, or until a probe ends it: logs, probes, candidates, checkpoints at their intervals.

        InputError if the student became of no use before there was a candidate.
        """
        last, started = self.step, time.perf_counter()
        if self.step == 0:
            self._probe()
        with Writer(self.context, self.candidates.parent) as writer:
            while not self.ended:
                self.curves.add(self.train_step(self.step))
                self.step += 1
                self._probe()
                if self.ended or self.step % self.settings.log_every == 0:
                    rate = (self.step - last) * self.settings.batch / (time.perf_counter() - started)
                    scalars = self.curves.close(self.step)
                    self._say(self.curves.line(self.step, self.settings.iterations, scalars, rate))
                    last, started = self.step, time.perf_counter()
                self._keep(writer)

    def _keep(self, writer: Writer) -> None:
        """Candidates and checkpoints that are due after a step; leaves when the ranks have been told to."""
        if self.ended:
            self._end()
        elif self.step % self.settings.candidate_every == 0:
            self._write_candidates()
        if self.ended or self.leaving or self.step % self.settings.checkpoint_every == 0:
            self.save(writer)
        writer.check()
        if self.leaving and not self.ended:
            writer.wait()
            self._say(
                f"told to leave: checkpoint at step {self.step}; started again, the run goes on from there"
            )
            self.context.leave()

    def _probe(self) -> None:
        """Probes the student if it is due: before the first step, at the interval, after the last step."""
        last = self.step == self.settings.iterations
        if self.probe is None or not (self.step % self.probe.every == 0 or last):
            return
        reading = self.probe.read(self.step, self.student, self.ema)
        self.health.read(reading, last)
        self.curves.mark(self.step, reading.scalars())
        self._say(self.curves.line(self.step, self.settings.iterations, reading.scalars()))

    def _end(self) -> None:
        """The last candidates, unless the student is of no use; then those from before are all there is."""
        verdict = self.health.verdict
        if verdict is None or not verdict.useless:
            self._write_candidates()
        elif earliest_step(self.settings.candidate_every, self.step, self.keep_candidates) >= verdict.since:
            raise InputError(
                f"step {verdict.step}: {verdict.reason}; there is no candidate from before; lower train.lr, raise"
                " method.warmup, write candidates more often (train.candidate_every), or keep more of them"
                " (train.keep_candidates)"
            )
        elif self.context.rank == 0:
            drop_candidates(self.candidates, verdict.since)
        if verdict is not None:
            self._say(sentence(verdict, self.settings.iterations))

    def _write_candidates(self) -> None:
        guidance, rank = self.method.requirements.guidance, self.context.rank
        precision = self.candidate_precision
        write_candidates(self.candidates, self.step, self.student, self.ema, rank, guidance, precision)
        if self.keep_candidates is not None and rank == 0:
            keep_newest(self.candidates, self.keep_candidates)

    def save(self, writer: Writer) -> None:
        """Begins a full-state checkpoint; every rank together."""
        progress: dict[str, Any] = {
            "step": self.step,
            "student_updates": self.student_updates,
            "updates": dict(self.updater.updates),
            "tangent": self.tangent,
            "health": self.health.state(),
            "curves": self.curves.state(),
        }
        writer.begin(checkpoint.gather(self.modules, self.optimisers, self.ema), progress, self.step)

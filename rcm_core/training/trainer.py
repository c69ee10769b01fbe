"""The training loop: steps, with logs, probes, candidates and checkpoints between them."""

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
    """Run all steps, and write logs, probes, candidates and checkpoints at their intervals."""

    candidates: Path
    candidate_precision: str = "float32"
    keep_candidates: int | None = None
    """Number of newest steps whose candidates are kept; None: all."""
    probe: Probe | None = None
    step: int = 0
    curves: Curves = field(default_factory=Curves)

    def __post_init__(self) -> None:
        """Restore the newest checkpoint of this run if it has one."""
        super().__post_init__()
        folder = self.context.resume()
        if folder is not None:
            self._restore(folder)

    @property
    def ended(self) -> bool:
        """True after the last step or once the health checks have decided to stop."""
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
        """Train to the last step, or until a probe stops the run.

        InputError if the student collapsed or drifted before the first candidate.
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
        """Write the candidates and checkpoints that are due after a step; exit after a preemption notice."""
        if self.ended:
            self._end()
        elif self.step % self.settings.candidate_every == 0:
            self._write_candidates()
        if self.ended or self.leaving or self.step % self.settings.checkpoint_every == 0:
            self.save(writer)
        writer.check()
        if self.leaving and not self.ended:
            writer.wait()
            self._say(f"preemption notice: checkpoint at step {self.step}; restart the run to resume from it")
            self.context.leave()

    def _probe(self) -> None:
        """Probe the student if a probe is due: before the first step, at the interval, after the last step."""
        last = self.step == self.settings.iterations
        if self.probe is None or not (self.step % self.probe.every == 0 or last):
            return
        reading = self.probe.read(self.step, self.student, self.ema)
        self.health.read(reading, last)
        self.curves.mark(self.step, reading.scalars())
        self._say(self.curves.line(self.step, self.settings.iterations, reading.scalars()))

    def _end(self) -> None:
        """Write the last candidates; after a collapse or drift keep only the earlier ones."""
        verdict = self.health.verdict
        if verdict is None or not verdict.useless:
            self._write_candidates()
        elif earliest_step(self.settings.candidate_every, self.step, self.keep_candidates) >= verdict.since:
            raise InputError(
                f"training stopped at step {verdict.step}: {verdict.reason}. No earlier candidate to fall back on;"
                " lower train.lr, raise method.warmup, lower train.candidate_every or raise train.keep_candidates"
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
        """Begin a full-state checkpoint; a collective."""
        progress: dict[str, Any] = {
            "step": self.step,
            "student_updates": self.student_updates,
            "updates": dict(self.updater.updates),
            "tangent": self.tangent,
            "health": self.health.state(),
            "curves": self.curves.state(),
        }
        writer.begin(checkpoint.gather(self.modules, self.optimisers, self.ema), progress, self.step)

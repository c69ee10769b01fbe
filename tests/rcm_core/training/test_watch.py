"""Planted faults: each is noticed, said, and ends the run or steps the tangent down as the params have it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from loops import QUIET, Brighten, Pull, equal, healthy, probe, trainer, weights

from infra.executors.local import LocalContext
from rcm_core.errors import InputError
from rcm_core.monitoring.health import FEWEST, PERSISTENT
from rcm_core.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("group")

RULES = QUIET.model_copy(update={"drift": 1.0, "collapse": 4.0, "patience": 3, "spike": 20.0})
TENACIOUS = RULES.model_copy(update={"patience": None})
FAST = {"student": 0.5, "fake": 1e-3}
"""Learning rates that change every weight so much in a step that the network's output is noise of another scale."""
STILL = {"student": 1e-12, "fake": 1e-12}


def names(made: Trainer) -> list[str]:
    return sorted(p.name for p in made.candidates.iterdir())


def test_a_healthy_run_triggers_nothing(folder: Path, tmp_path: Path) -> None:
    made = trainer(folder, tmp_path, healthy, probe=probe(), health=TENACIOUS, iterations=12)
    made.run()
    assert made.step == 12
    assert made.health.facts() == {
        "nonfinite": 0, "spikes": {"tangent_norm": 0, "gradient_norm": 0}, "step_downs": [], "verdict": None,
        "readings": [r._asdict() for r in made.health.readings],
    }  # fmt: skip
    assert [r.step for r in made.health.readings] == [0, 2, 4, 6, 8, 10, 12]


def test_a_loss_that_jumps_is_a_spike_of_the_gradient(folder: Path, tmp_path: Path) -> None:
    jumps = {2 * FEWEST, 2 * FEWEST + 6}  # the student moves in even steps

    def method(tangent: str) -> Pull:
        return Pull(tangent, scale=lambda step: 1e3 if step in jumps else 1.0)

    made = trainer(folder, tmp_path, method, health=RULES, iterations=60, checkpoint_every=60, log_every=10)
    made.run()
    assert made.health.facts()["spikes"] == {"tangent_norm": 0, "gradient_norm": 2}
    assert made.step == 60  # it is told, and no reason to stop
    assert [row["step"] for row in made.curves.rows if row["spikes"]] == [50]
    assert max(row["gradient_norm"] for row in made.curves.rows) > 100 * made.curves.rows[0]["gradient_norm"]


def wild(tangent: str) -> Pull:
    """Return a method whose exact tangent's norm spikes in every third step; other tangents never spike."""
    return Pull(tangent, norm=lambda kind, step: 500.0 if kind == "exact" and step % 3 == 0 else 5.0)


FIRST_SPIKE = 21
"""The first step with a spike from ``FEWEST`` on."""


@pytest.mark.parametrize("allowed", [True, False])
def test_a_tangent_that_keeps_spiking_steps_the_ladder_down_if_allowed(
    folder: Path, tmp_path: Path, allowed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert FIRST_SPIKE >= FEWEST
    step = FIRST_SPIKE + 3 * (PERSISTENT - 1)
    settings: dict[str, Any] = {"tangent_fallback": allowed, "health": RULES, "iterations": 80}
    made = trainer(folder, tmp_path, wild, **settings, checkpoint_every=step + 1)
    made.run()
    said = capsys.readouterr().out
    expected = (
        f"step {step}: the tangent norm was more than train.health.spike = 20 times its running median in"
        f" {PERSISTENT} of the last {step + 1} steps that have one; stepping down from exact to semi"
    )
    assert (expected in said) is allowed
    assert made.tangent == made.method.tangent == ("semi" if allowed else "exact")  # type: ignore[attr-defined]
    assert made.health.step_downs == ([{"step": step, "from": "exact", "to": "semi"}] if allowed else [])
    assert (made.health.spikes["tangent_norm"].total == PERSISTENT) is allowed
    assert made.step == 80


def test_a_student_whose_brightness_drifts_is_stopped_and_what_was_before_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = RULES.model_copy(update={"collapse": None})
    made = trainer(
        folder, tmp_path, Brighten, lr={"student": 0.1}, probe=probe(4), health=rules, iterations=100,
        candidate_every=3, checkpoint_every=100,
    )  # fmt: skip
    made.run()
    verdict = made.health.verdict
    assert verdict is not None
    assert (verdict.kind, verdict.step - verdict.since) == ("drift", 4)
    last = made.health.readings[-1]
    # one pixel patch has one bias per pixel, so the mean moves and the deviation hardly
    assert last.brightness is not None
    assert last.contrast is not None
    assert abs(last.brightness) == last.drift > 1
    assert abs(last.contrast) < 0.2
    assert (
        f"stopped at step {verdict.step} of 100 because the student's samples drifted away"
        in capsys.readouterr().out
    )
    assert names(made) == [f"step_{s:06d}-ema_0.1" for s in range(3, verdict.since, 3)]
    assert made.step == verdict.step


def test_a_learning_rate_that_is_too_high_makes_the_student_collapse(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = RULES.model_copy(update={"drift": None})
    made = trainer(
        folder, tmp_path, healthy, lr=FAST, probe=probe(), health=rules, iterations=40, candidate_every=1,
        checkpoint_every=40,
    )  # fmt: skip
    made.run()
    verdict = made.health.verdict
    assert verdict is not None
    assert (verdict.kind, verdict.since, verdict.step) == ("collapse", 2, 4)
    assert names(made) == ["step_000001-ema_0.1"]
    said = capsys.readouterr().out
    assert "Training stopped at step 4 of 40 because the student collapsed: the validation score was" in said
    assert "Candidates from before step 2 are kept." in said
    assert (tmp_path / "step_00000004").is_dir()


def test_a_collapse_before_the_first_candidate_is_an_error(folder: Path, tmp_path: Path) -> None:
    made = trainer(
        folder, tmp_path, healthy, lr=FAST, probe=probe(), health=RULES, iterations=40, candidate_every=2
    )
    message = r"step 4: the validation score was .* No earlier candidate to fall back on; lower train\.lr"
    with pytest.raises(InputError, match=message):
        made.run()


def test_a_plateau_ends_the_run_as_its_last_step_would(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = trainer(folder, tmp_path, healthy, lr=STILL, probe=probe(), health=RULES, iterations=50)
    made.run()
    assert (made.step, made.ended) == (6, True)
    assert names(made) == ["step_000006-ema_0.1"]
    assert (tmp_path / "step_00000006").is_dir()
    (last,) = [row for row in made.curves.rows if row["step"] == 6]
    assert {"loss", "probe_score", "gradient_norm"} <= set(last)  # the open window is closed
    expected = "Training stopped at step 6 of 50: the validation score has not improved for 3 probes (best "
    assert expected in capsys.readouterr().out
    again = trainer(folder, tmp_path, healthy, lr=STILL, probe=probe(), health=RULES, iterations=50)
    again.run()  # what has ended does not continue
    assert (again.step, again.health.verdict) == (6, made.health.verdict)


class Dying(LocalContext):
    """A context whose process ends before the checkpoint of step ``at`` is complete."""

    at = 0

    def report(self, scalars: Mapping[str, float], checkpoint: Path | None, step: int) -> None:
        if step == self.at:
            raise KeyboardInterrupt
        super().report(scalars, checkpoint, step)


@pytest.mark.parametrize(
    ("method", "settings", "killed"),
    [
        (healthy, {"lr": STILL, "checkpoint_every": 4}, 6),  # the stop lies between two checkpoints: 4 and 8
        (healthy, {"lr": STILL, "checkpoint_every": 4}, 4),
        (healthy, {"lr": FAST, "checkpoint_every": 3, "candidate_every": 1}, 4),
        (
            Brighten,
            {"lr": {"student": 0.1}, "checkpoint_every": 4, "candidate_every": 2, "health": TENACIOUS},
            10,
        ),
    ],
)
def test_killed_and_resumed_stops_where_the_uninterrupted_run_does(
    folder: Path, tmp_path: Path, method: Callable[[str], Pull], settings: dict[str, Any], killed: int
) -> None:
    common: dict[str, Any] = {"probe": probe(), "health": RULES, "iterations": 60, "log_every": 4} | settings
    whole = trainer(folder, tmp_path / "whole", method, **common)
    whole.run()
    assert whole.health.verdict is not None
    cut = trainer(folder, tmp_path / "cut", method, **common)
    cut.context = Dying(tmp_path / "cut")
    cut.context.at = killed
    with pytest.raises(KeyboardInterrupt):
        cut.run()
    rest = trainer(folder, tmp_path / "cut", method, **common)
    assert rest.step < whole.step
    assert rest.health.verdict is None
    rest.run()
    assert rest.step == whole.step
    assert rest.health.facts() == whole.health.facts()
    assert rest.curves == whole.curves
    assert equal(weights(whole), weights(rest))
    assert equal(whole.ema.weights(0.1), rest.ema.weights(0.1))
    assert names(rest) == names(whole)

"""Decision from a series of probes: continue, finished, or diverged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from loops import QUIET

from rcm_core.config.sections import HealthSection
from rcm_core.monitoring.early_stopping import GAIN, ProbeResult, StopDecision, decide_stop, sentence


def limits(**rules: float) -> HealthSection:
    """Return limits with 64 samples, so that the assumed noise of a score is 1/64."""
    return QUIET.model_copy(update={"probe_samples": 64, **rules})


def scores(*values: float) -> list[ProbeResult]:
    return [ProbeResult.of(10 * i, (v, 0.0, 0.0, 0.0)) for i, v in enumerate(values)]


def drifts(*values: float) -> list[ProbeResult]:
    return [ProbeResult.of(10 * i, (0.1, v, -v / 2, v)) for i, v in enumerate(values)]


def first(readings: Sequence[ProbeResult], rules: HealthSection) -> StopDecision | None:
    """Decide after every probe, as training does, until there is a verdict."""
    found = (decide_stop(readings[: i + 1], rules, last=False) for i in range(len(readings)))
    return next((verdict for verdict in found if verdict), None)


def test_two_bad_scores_in_a_row_are_a_collapse() -> None:
    found = first(scores(0.5, 0.2, 0.1, 0.9, 0.8, 0.1), limits(collapse=4.0))
    assert found is not None
    assert (found.kind, found.step, found.since, found.useless) == ("collapse", 40, 30, True)
    assert "was 0.9 at step 30 and 0.8 at step 40" in found.reason
    assert "train.health.collapse = 4 (best 0.1 at step 20)" in found.reason


@pytest.mark.parametrize(
    "values",
    [
        (0.5, 0.2, 0.1, 0.9, 0.1, 0.9, 0.1),  # never two in a row
        (0.5, 0.2, 0.1, 0.39, 0.39, 0.39),  # not bad enough
        (0.9, 0.8),  # the training is not responsible for the untrained student
        (0.5, 0.001, 0.06, 0.06, -0.002, 0.06, 0.06),  # values below the noise count as the noise
    ],
)
def test_less_is_none(values: tuple[float, ...]) -> None:
    assert first(scores(*values), limits(collapse=4.0)) is None


def test_samples_that_are_not_finite_are_no_score_at_all() -> None:
    found = first(scores(0.5, 0.2, math.nan, math.inf), limits(collapse=1000.0))
    assert found is not None
    assert (found.kind, found.since) == ("collapse", 20)
    assert "not finite at step 20 and not finite at step 30" in found.reason
    assert first(scores(0.5, 0.2, math.nan, 0.2, math.nan), limits(collapse=4.0)) is None


def test_two_probes_too_far_from_the_teacher_are_a_drift() -> None:
    found = first(drifts(0.1, 0.2, 1.2, 0.3, 1.1, 1.3), limits(drift=1.0))
    assert found is not None
    assert (found.kind, found.step, found.since, found.useless) == ("drift", 50, 40, True)
    assert "train.health.drift = 1 (brightness 1.3, contrast -0.65)" in found.reason


def test_where_the_student_began_is_no_drift() -> None:
    """An untrained student's single step is a blur: it begins far off and has yet to arrive."""
    assert first(drifts(2.0, 1.9, 1.5, 1.2, 0.4), limits(drift=1.0)) is None
    found = first(drifts(2.0, 2.1, 2.1), limits(drift=1.0))
    assert found is not None
    assert "beyond 2, the value before training (brightness" in found.reason


def test_patience_ends_with_the_probes_that_brought_nothing() -> None:
    found = first(scores(0.5, 0.3, 0.31, 0.32, 0.3, 0.2), limits(patience=3))
    assert found is not None
    assert (found.kind, found.step, found.since, found.useless) == ("plateau", 40, 40, False)
    assert found.reason == "the validation score has not improved for 3 probes (best 0.3 at step 10)"


def test_an_improvement_must_be_worth_the_name() -> None:
    creeping = [0.5 * (1 - GAIN / 20) ** i for i in range(6)]
    assert first(scores(*creeping), limits(patience=4)) is not None
    walking = [0.5 * (1 - 1.5 * GAIN) ** i for i in range(6)]
    assert first(scores(*walking), limits(patience=1)) is None
    assert first(scores(0.5, 0.01, 0.004, -0.003, -0.004), limits(patience=1)) is None


def test_a_bad_score_is_no_progress_but_a_collapse_goes_first() -> None:
    found = first(scores(0.5, 0.1, 0.9, 0.9), limits(patience=2, collapse=4.0))
    assert found is not None
    assert found.kind == "collapse"


def test_at_the_last_step_there_is_nothing_left_to_stop() -> None:
    flat, fallen = scores(0.5, 0.5, 0.5), scores(0.1, 0.9, 0.9)
    rules = limits(patience=2, collapse=4.0)
    assert decide_stop(flat, rules, last=False) is not None
    assert decide_stop(flat, rules, last=True) is None
    assert decide_stop(fallen, rules, last=True) is not None


def test_a_last_probe_next_to_the_one_before_confirms_nothing() -> None:
    rules = limits(collapse=4.0, probe_every=10)
    begun = scores(0.1, 0.1)
    for apart, confirmed in ((1, False), (4, False), (5, True), (10, True)):
        readings = [*begun, *(ProbeResult.of(step, (0.9, 0.0, 0.0, 0.0)) for step in (20, 20 + apart))]
        assert (decide_stop(readings, rules, last=True) is not None) is confirmed


def test_null_switches_every_rule_off() -> None:
    assert first([*scores(0.1, 9.0, 9.0, 9.0), *drifts(9.0, 9.0)], limits()) is None


def test_the_sentence_is_one_line_for_everybody() -> None:
    plateau = StopDecision("plateau", 1400, 1400, "the validation score has not improved for 3 probes")
    assert sentence(plateau, 5600) == (
        "Training stopped at step 1,400 of 5,600: the validation score has not improved for 3 probes."
    )
    lost = StopDecision("collapse", 40, 30, "the validation score was 0.9")
    assert sentence(lost, 100) == (
        "Training stopped at step 40 of 100 because the student collapsed: the validation score was 0.9."
        " Candidates from before step 30 are kept."
    )

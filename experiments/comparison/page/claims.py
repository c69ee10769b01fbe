"""Published claims, and the rules that decide whether each shows here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, NamedTuple

from experiments.comparison.page.intervals import Interval, difference
from experiments.comparison.page.results import Group
from rcm_core.evaluation.metric import metric_of

StopDecision = Literal["shows", "does not show", "undecided", "not run"]
ACCURACY = "accuracy"
"""Placeholder for the benchmark's headline accuracy."""
DISTANCE = "distance"
"""Placeholder for the Frechet distance to each of the two references."""
REFERENCES = {
    name: metric_of(name).phrase.removeprefix("Frechet distance ") for name in ("frechet_teacher", "frechet")
}


@dataclass(frozen=True)
class Part:
    """A comparison of ``ours`` with ``theirs`` by ``metric``.

    ``ours`` must be better, or worse by at most ``margin`` (``share`` of theirs), or not worse ``within`` the interval.
    """

    ours: str
    theirs: str
    metric: str
    margin: float = 0.0
    share: float = 0.0
    within: bool = False
    steps: int | None = None
    """Step count of the student; None: the mean over all step counts."""

    @property
    def words(self) -> str:
        metric = self.metric if self.metric == DISTANCE else metric_of(self.metric).phrase
        if self.steps is not None:
            metric = f"{self.steps}-step {metric}"
        if self.within:
            return f"{metric} of {self.ours} no worse than {self.theirs}'s within the interval"
        if self.share:
            return f"{metric} of {self.ours} no worse than {self.theirs}'s by {self.share:.0%} of it"
        if self.margin:
            return f"{metric} of {self.ours} no worse than {self.theirs}'s by {self.margin:g}"
        return f"{metric} of {self.ours} better than {self.theirs}'s"


@dataclass(frozen=True)
class Claim:
    """A published claim, and the parts that must hold for it to show here."""

    name: str
    words: str
    source: str
    parts: tuple[Part, ...]


class Finding(NamedTuple):
    """A part on one teacher with one budget: the gain of ours (including the margin), and the verdict."""

    part: Part
    gain: Interval | None
    verdict: StopDecision


CLAIMS = (
    Claim(
        "rcm-terms",
        "rCM's two terms together are no worse than either alone at one step, and more diverse than matching alone",
        "arXiv 2510.08431",
        (
            Part("rcm", "scm", DISTANCE, within=True, steps=1),
            Part("rcm", "scm-3e-4", DISTANCE, within=True, steps=1),
            Part("rcm", "dmd2", DISTANCE, within=True, steps=1),
            Part("rcm", "dmd2-3e-4", DISTANCE, within=True, steps=1),
            Part("rcm", "dmd2", "diversity", steps=1),
            Part("rcm", "dmd2-3e-4", "diversity", steps=1),
        ),
    ),
    Claim(
        "rcm-dmd2",
        "rCM matches DMD2 in quality and is more diverse",
        "arXiv 2510.08431",
        (
            Part("rcm", "dmd2", DISTANCE, share=0.1),
            Part("rcm", "dmd2", ACCURACY, margin=0.02),
            Part("rcm", "dmd2", "diversity"),
        ),
    ),
    Claim(
        "scm-detail",
        "sCM alone loses detail, which rCM's distribution matching restores",
        "arXiv 2510.08431",
        (Part("rcm", "scm", DISTANCE), Part("rcm", "scm", "precision")),
    ),
    Claim(
        "cdm-dmd2",
        "CDM beats DMD2, and needs no GAN for it",
        "arXiv 2605.06376",
        (
            Part("cdm", "dmd2", DISTANCE),
            Part("cdm", "dmd2", ACCURACY, margin=0.02),
            Part("cdm", "dmd2-gan", DISTANCE),
        ),
    ),
    Claim(
        "two-time-scale",
        "DMD2's two-time-scale rule matters: several fake-score updates per student update beat one",
        "arXiv 2405.14867",
        (Part("dmd2", "dmd2-1", DISTANCE), Part("dmd2-5", "dmd2-1", DISTANCE)),
    ),
    Claim(
        "sana-sprint",
        "SANA-Sprint's sCM with an adversarial loss beats either alone",
        "arXiv 2503.09641",
        (
            Part("sana_sprint", "ladd", DISTANCE),
            Part("sana_sprint", "sana_scm", DISTANCE),
        ),
    ),
)
MEMORY = Claim(
    "tbcm-memory",
    "TBCM needs less memory and time per step than sCM that encodes images in the loop",
    "arXiv 2511.20410",
    (),
)


def findings(claim: Claim, group: Group) -> list[Finding]:
    """Evaluate every part of ``claim`` in this group; parts about the distance are evaluated for both references."""
    parts = [
        replace(part, metric=metric)
        for part in claim.parts
        for metric in (REFERENCES if part.metric == DISTANCE else [part.metric])
    ]
    return [_finding(part, group) for part in parts]


def verdict(found: Sequence[Finding], reference: str | None = None) -> StopDecision:
    """Return the claim's verdict: it shows if every part that was run does, and does not if one does not.

    With ``reference``, parts about the distance to the other reference are ignored.
    """
    asked = [f for f in found if reference in (None, f.part.metric) or f.part.metric not in REFERENCES]
    run = [f.verdict for f in asked if f.verdict != "not run"]
    if not run:
        return "not run"
    if "does not show" in run:
        return "does not show"
    return "undecided" if "undecided" in run else "shows"


def verdict_words(found: Sequence[Finding]) -> str:
    """Return the verdict in words, by reference if they differ, and marked if it is based on one seed."""
    asked = [reference for reference in REFERENCES if any(f.part.metric == reference for f in found)]
    by = {REFERENCES[reference]: verdict(found, reference) for reference in asked}
    text = ", ".join(f"{each} by the distance {words}" for words, each in by.items())
    if len(set(by.values())) <= 1:
        text = verdict(found)
    return text + (" (one seed)" if any(f.gain.seeds == 1 for f in found if f.gain) else "")


def memory_verdict(memory: dict[str, Any] | None) -> StopDecision:
    """Return the verdict: both shares must be below 1, and that of memory at most the promised one."""
    if memory is None:
        return "not run"
    shares = memory["tbcm_of_scm_vae"][memory["decides"]]
    return "shows" if shares["tensors"] <= memory["allowed"] and shares["seconds"] < 1 else "does not show"


def gain(group: Group, ours: str, theirs: str, metric: str, steps: int | None = None) -> Interval:
    """Return the gain of ``ours`` at ``steps`` (None: in the mean over all step counts).

    Positive is better for every metric.
    """
    found = difference(group.values(ours, metric, steps), group.values(theirs, metric, steps))
    if metric_of(metric).higher_is_better:
        return found
    return Interval(-found.value, -found.high, -found.low, found.seeds)


def _finding(part: Part, group: Group) -> Finding:
    if part.ours not in group.runs or part.theirs not in group.runs:
        return Finding(part, None, "not run")
    metric = group.accuracy if part.metric == ACCURACY else part.metric
    found = gain(group, part.ours, part.theirs, metric, part.steps)
    margin = part.margin
    if part.share:
        margin = part.share * fmean(v["value"] for v in group.values(part.theirs, metric, part.steps))
    moved = Interval(found.value + margin, found.low + margin, found.high + margin, found.seeds)
    if moved.low > 0 or (part.within and moved.high >= 0):
        return Finding(part, moved, "shows")
    return Finding(part, moved, "does not show" if moved.high < 0 else "undecided")

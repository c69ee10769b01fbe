"""Plan of the comparison: teachers x variants of methods x seeds x budgets, and the arithmetic of the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from rcm_core.errors import InputError, nearest
from rcm_core.protocols import Method

UPDATES, TIME = "updates", "time"
BUDGETS = (UPDATES, TIME)
"""Budgets: equal student updates, or equal time, that of the anchor's run at equal updates."""
ROUTE_POINTS = 16
"""Training points per route for TBCM."""


@dataclass(frozen=True)
class Variant:
    """A preset of conf/method, or a preset with a changed setting that tests a claim."""

    name: str
    preset: str
    overrides: tuple[str, ...] = ()
    words: str = ""
    """Difference from the preset, for tables."""
    budgets: tuple[str, ...] = BUDGETS
    """Budgets in which it runs."""


@dataclass(frozen=True)
class Goal:
    """Promise about a benchmark's headline accuracy."""

    teacher: float
    """Minimum accuracy of the teacher with all its steps."""
    share: float
    """Share of the teacher's accuracy that the best student must reach at ``steps``."""
    steps: int


@dataclass(frozen=True)
class Plan:
    """All runs on one teacher."""

    teacher: str
    variants: tuple[Variant, ...]
    updates: int
    """Student updates in every run of the budget "updates"."""
    seeds: tuple[int, ...] = (0, 1, 2)
    anchor: str = "rcm"
    """Variant whose training time is the budget "time"."""
    points: int = 64
    """Training points per student update, for every method."""
    overrides: tuple[str, ...] = field(default=())
    """Overrides for every run; all overrides of the data must be here, because all runs share the data."""
    goal: Goal | None = None
    preset: str | None = None
    """Name in conf/teacher; None: ``teacher``."""

    @property
    def teacher_override(self) -> str:
        """Return the override that selects the teacher's preset."""
        return f"teacher={self.preset or self.teacher}"

    def variant(self, name: str) -> Variant:
        """Return the variant called ``name``; InputError if the plan has none."""
        names = [v.name for v in self.variants]
        if name not in names:
            raise InputError(
                f"unknown run {name!r}{nearest(name, names)}; {self.teacher} has {', '.join(names)}"
            )
        return self.variants[names.index(name)]


def main_methods(points: int, guidance: float) -> tuple[Variant, ...]:
    """Return the six methods that are compared everywhere, for a teacher with this guidance.

    TBCM's batch counts prompts. CDM applies the guidance as a loss of weight alpha = guidance - 1.
    """
    route = (
        f"train.batch={points // ROUTE_POINTS}",
        f"method.trajectory_steps={ROUTE_POINTS + 1}",
        f"method.pairs={ROUTE_POINTS}",
    )
    return (
        Variant("scm", "scm"),
        Variant("rcm", "rcm"),
        Variant("dmd2", "dmd2"),
        Variant("tbcm", "tbcm", route),
        Variant("cdm", "cdm", (f"method.alpha={guidance - 1:g}",)),
        Variant("sana_sprint", "sana_sprint"),
    )


OTHERS = (
    Variant("dmd2-gan", "dmd2-gan"),
    Variant("dcm", "dcm"),
    Variant("lcm", "lcm"),
    Variant("ect", "ect"),
    Variant("meanflow", "meanflow"),
    Variant("kd", "kd"),
)
AT_UPDATES = (UPDATES,)
ABLATIONS = (
    # variants for a claim or an unexpected result: equal updates are enough
    Variant(
        "dmd2-1", "dmd2", ("method.student_every=2",), "one fake-score update per student update", AT_UPDATES
    ),
    Variant(
        "dmd2-5",
        "dmd2",
        ("method.student_every=6",),
        "five fake-score updates per student update",
        AT_UPDATES,
    ),
    Variant(
        "rcm-0.1", "rcm", ("method.dmd_weight=10.0",), "lambda = 0.1, ten times the published", AT_UPDATES
    ),
    Variant(
        "dmd2-single", "dmd2", ("method.simulation_steps=1",), "only ever one step in training", AT_UPDATES
    ),
    Variant("ladd", "sana_sprint", ("method.consistency_weight=0.0",), "SANA-Sprint without sCM", AT_UPDATES),
    Variant(
        "sana_scm",
        "sana_sprint",
        (
            "method.adversarial_weight=0.0",
            "method.warmup=100",
        ),  # without a discriminator every iteration is an update
        "SANA-Sprint without its adversarial loss",
        AT_UPDATES,
    ),
    Variant(
        "sana-0.05",
        "sana_sprint",
        ("method.adversarial_weight=0.05",),
        "SANA-Sprint's adversarial loss at a tenth of the published weight",
        AT_UPDATES,
    ),
    Variant("scm-3e-4", "scm", ("train.lr={student: 0.0003}",), "with rCM's learning rate", AT_UPDATES),
    Variant(
        "dmd2-3e-4",
        "dmd2",
        ("train.lr={student: 0.0003, fake: 0.0003}",),
        "with rCM's learning rate",
        AT_UPDATES,
    ),
)
# Students are sampled in seconds and the teacher once for all runs, so there are enough samples to distinguish methods.
# The speed of sampling does not depend on the method. No training stops early, even if it diverges. On small networks
# two trainings of one thread each at once finish sooner than two of two threads one after the other.
COMMON = (
    "evaluate.diversity_prompts=50",
    "evaluate.timing_samples=8",
    "train.health.probe_every=null",
    "train.health.spike=null",
    "train.threads=1",
)
# The shipped result of conf/teacher/mini-train.yaml: trained on another machine it would differ by rounding.
SHIPPED = "teacher.source=data/mini/teacher/pipeline"
PLANS = {
    "mini": Plan(
        "mini",
        (*main_methods(64, 1.5), *OTHERS, *ABLATIONS),
        250,
        overrides=(SHIPPED, "evaluate.samples=2000", *COMMON),
        preset="mini-train",
    ),
    "scenes": Plan(
        "scenes",
        main_methods(32, 3.0),
        300,
        points=32,
        overrides=("train.batch=32", "evaluate.samples=1106", *COMMON),  # every test prompt twice
        goal=Goal(0.75, 0.95, 4),
    ),
}


def plan_of(teacher: str) -> Plan:
    """Return the plan for ``teacher``; InputError lists the planned teachers."""
    if teacher not in PLANS:
        raise InputError(f"no comparison is planned on {teacher!r}; expected {' or '.join(PLANS)}")
    return PLANS[teacher]


def iterations_for(method: Method, updates: int) -> int:
    """Return the fewest iterations in which ``method`` updates the student ``updates`` times."""
    done = 0
    for step in count():
        done += method.student_update(step)
        if done == updates:
            return step + 1
    raise AssertionError("unreachable")


def updates_in(method: Method, iterations: int) -> int:
    """Return how often ``method`` updates the student in ``iterations``."""
    return sum(method.student_update(step) for step in range(iterations))


def choose_variants(plan: Plan, only: Sequence[str]) -> list[Variant]:
    """Return the variants named in ``only``, all if it is empty; InputError for a name that is not in the plan."""
    return [plan.variant(name) for name in only] if only else list(plan.variants)


def seeds_of(text: str) -> tuple[int, ...]:
    """Return the integers of ``--seeds``, none if it is empty."""
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError as error:
        raise InputError(f"--seeds {text}: expected integers separated by commas, as in 0,1,2") from error

"""Schemas of the JSON files that stages leave for each other; ``run_folder`` and ``checked_json`` read them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, RootModel, model_validator

from rcm_core.storage.checked_json import Facts

Whole = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, lt=2**63)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Angles = Annotated[list[Finite], Field(min_length=1)]
CANDIDATE = r"^step_[0-9]{1,18}-ema_[0-9.e+-]+$"


class TeacherFacts(Facts):
    """``runs/teacher/teacher.json``."""

    hash: Sha256
    family: str
    data: str
    source: str
    licence: str
    shape: Annotated[list[Count], Field(min_length=4, max_length=4)]
    guidance: Annotated[float, Field(ge=1, allow_inf_nan=False)]
    steps: Count
    shift: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    solver: Literal["euler", "unipc", "dpmsolver++"]
    grid: Literal["scheduler", "linear", "karras"] = "scheduler"
    negative_prompt: str
    precision: Literal["float32", "bfloat16"]


class StoreFacts(Facts):
    """``runs/trajectories/store.json``."""

    location: Annotated[str, Field(min_length=1)]
    endpoint: str | None
    real: bool = False


class ShardFacts(Facts):
    """Beside a shard: what it holds."""

    samples: list[Whole]
    prompts: list[str]
    nonfinite: Whole = 0
    shard: Annotated[str, Field(pattern=r"^shard_[0-9]{5,12}\.safetensors$")]
    sha256: Sha256

    @model_validator(mode="after")
    def _check_pairs(self) -> ShardFacts:
        if len(self.samples) != len(self.prompts):
            raise ValueError("has not as many prompts as samples")
        return self


class Estimate(Facts):
    """A number with its interval."""

    value: Finite
    low: Finite
    high: Finite
    n: Whole


class SamplerFacts(Facts):
    """A student's sampler; also the configuration of its scheduler."""

    kind: Literal["renoise", "euler"]
    times: Annotated[list[Angles], Field(min_length=1)]


class CandidateFacts(Facts):
    """One candidate of the selection."""

    name: Annotated[str, Field(pattern=CANDIDATE)]
    step: Whole
    ema: Finite


class ScoredCandidate(CandidateFacts):
    """With what it was chosen by."""

    scores: dict[str, Estimate]
    score: Estimate


class Selection(Facts):
    """``runs/select/selection.json``."""

    choice: CandidateFacts
    reason: str
    metric: str
    steps: Annotated[list[Count], Field(min_length=1)]
    candidates: Annotated[list[ScoredCandidate], Field(min_length=1)]
    sampler: SamplerFacts


class Protocol(Facts):
    """How the numbers were made."""

    hash: str
    description: str
    reference: str = ""
    finding: str = ""


Row = dict[str, Estimate]
ROWS = ("network_calls", "frechet_teacher", "accuracy", "diversity")


class ShownMetrics(Facts):
    """Numbers by sampler and name, as a table shows them."""

    __pydantic_extra__: dict[str, Row] = Field(init=False)
    protocol: dict[str, Any] = Field(default_factory=dict)


class Quality(Facts):
    """``quality.json`` of evaluate: numbers by sampler and name, and the protocol."""

    __pydantic_extra__: dict[str, Row] = Field(init=False)
    protocol: Protocol
    teacher: Row

    @model_validator(mode="after")
    def _complete(self) -> Quality:
        rows = {"teacher": self.teacher, **self.__pydantic_extra__}
        if not any(name.startswith("student_") for name in rows):
            raise ValueError("has no row of a student")
        for name, row in rows.items():
            if not re.fullmatch(r"teacher|(teacher|student)_[1-9][0-9]{0,8}", name):
                raise ValueError(f"has a row {name!r}, expected teacher, teacher_<steps> and student_<steps>")
            if lacking := [key for key in (*ROWS, *self._further()) if key not in row]:
                raise ValueError(f"lacks {name}.{lacking[0]}")
        return self

    @staticmethod
    def _further() -> tuple[str, ...]:
        return ()


class Metrics(Quality):
    """``metrics.json`` of evaluate: every sampler is timed too."""

    @staticmethod
    def _further() -> tuple[str, ...]:
        return ("seconds_per_sample",)


class ReadingFacts(Facts):
    """One probe."""

    model_config = ConfigDict(extra="forbid")
    step: Whole
    score: Finite | None
    brightness: Finite | None
    contrast: Finite | None
    drift: Finite | None


class VerdictFacts(Facts):
    """Why training ended early."""

    model_config = ConfigDict(extra="forbid")
    kind: str
    step: Whole
    since: Whole
    reason: str


class StepDown(Facts):
    """A step down the ladder of tangents."""

    model_config = ConfigDict(populate_by_name=True)
    step: Whole
    before: str = Field(alias="from")
    to: str


class HealthFacts(Facts):
    """``runs/train/health.json``."""

    step: Whole
    iterations: Count
    nonfinite: Whole
    spikes: dict[str, Whole]
    readings: list[ReadingFacts]
    step_downs: list[StepDown]
    verdict: VerdictFacts | None


class CurveState(Facts):
    """``curves.json`` of the live state."""

    model_config = ConfigDict(extra="forbid")
    rows: list[dict[str, Finite]]
    sums: dict[str, Finite]
    counts: dict[str, Whole]


class Progress(Facts):
    """``progress.json`` of a checkpoint."""

    step: Whole
    student_updates: Whole
    updates: dict[str, Whole]
    optimisers: list[str]


class Record(Facts):
    """``record.json`` of a stage."""

    stage: str
    parameters: dict[str, dict[str, Any]]
    inputs: dict[str, str]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    peak_memory_bytes: Whole
    commit: str | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    seed: int | None = None
    device: str = ""


class TrainRecord(Record):
    """``record.json`` of train: the report names the method."""

    @model_validator(mode="after")
    def _method(self) -> TrainRecord:
        if not isinstance(self.parameters.get("method", {}).get("name"), str):
            raise ValueError("lacks parameters.method.name")
        return self


class StudentTeacher(Facts):
    """The teacher in ``student.json``."""

    hash: Sha256
    licence: str


class StudentFacts(Facts):
    """``student.json`` of a published student."""

    family: str
    shape: Annotated[list[Count], Field(min_length=4, max_length=4)]
    text_length: Count
    absent: list[str] = Field(default_factory=list)
    precision: Literal["float32", "bfloat16"] = "float32"
    steps: list[Count]
    method: dict[str, Any]
    choice: dict[str, Any]
    teacher: StudentTeacher


class Prompts(RootModel[list[str]]):
    """``prompts.json`` beside the samples of evaluate."""

    root: Annotated[list[str], Field(min_length=1)]


class Usage(Facts):
    """Peak memory that a rank left in the live state."""

    peak_memory_bytes: Whole

"""The layout of ``runs/``: where each stage leaves its files, and the readers of the records that stages share.

No other module has a path of these files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcm_core.errors import InputError


class Place:
    """A file or folder below the run folder."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, run: RunPlaces, owner: type[RunPlaces]) -> Path:
        return run.root / self.name


@dataclass(frozen=True)
class RunPlaces:
    """The files and folders in ``runs/``."""

    root: Path

    code_modules = Place("code/modules.json")
    """Hashes of modules by name."""
    teacher_file = Place("teacher/teacher.json")
    """Facts of the teacher."""
    teacher_pipeline = Place("teacher/pipeline")
    """The pipeline of a teacher that was trained here."""
    prompts_file = Place("prompts/prompts.parquet")
    """Prompts of all splits."""
    prompt_hashes_file = Place("prompts/prompts.json")
    """Number and hash of each split's prompts."""
    trajectories = Place("trajectories")
    """The store of training samples."""
    manifest = Place("trajectories/manifest.parquet")
    """List of the training samples."""
    candidates = Place("train/candidates")
    """Candidates of training, a folder each."""
    curves = Place("train/curves.csv")
    """Scalars of training by step."""
    health_file = Place("train/health.json")
    """Probes, spikes and the verdict of training."""
    selection_file = Place("select/selection.json")
    """Scores of the candidates, the choice and the sampler."""
    student = Place("select/transformer")
    """The network of the chosen candidate."""
    metrics_file = Place("evaluate/metrics.json")
    """Numbers of all samplers, with timings."""
    quality_file = Place("evaluate/quality.json")
    """Numbers of all samplers without timings."""
    samples = Place("evaluate/samples")
    """Kept samples of all samplers and their prompts."""
    sample_prompts_file = Place("evaluate/samples/prompts.json")
    """Prompts of the kept samples."""
    published = Place("publish/pipeline")
    """The published pipeline."""
    report = Place("report/report.html")
    """The page of the report."""
    report_series = Place("report/quality.csv")
    """Scores of the candidates, for `dvc plots`."""
    tuned_times = Place("tune/times.json")
    """Outcome of `rcm tune-times`."""

    def stage(self, name: str) -> Path:
        """Return the output folder of the stage ``name``."""
        return self.root / name

    def record_file(self, stage: str) -> Path:
        """Return the record file of ``stage``."""
        return self.root / stage / "record.json"

    def code_hashes(self, stage: str) -> Path:
        """Return the file of the hashes of ``stage``'s code."""
        return self.root / "code" / f"{stage}.json"


@dataclass(frozen=True)
class RunFolder(RunPlaces):
    """The folder ``runs/`` of a workspace. A reader raises InputError with the stage that makes its file again."""

    @classmethod
    def of(cls, workspace: Path) -> RunFolder:
        """Return the run folder of ``workspace``."""
        return cls(workspace / "runs")

    def teacher(self) -> dict[str, Any]:
        """Read the facts of the teacher."""
        from rcm_core.storage.checked_json import read
        from rcm_core.storage.schemas import TeacherFacts

        facts: dict[str, Any] = read(self.teacher_file, TeacherFacts, "teacher")
        return facts

    def prompts(self, split: str) -> list[str]:
        """Read the prompts of ``split`` in file order."""
        from rcm_core.storage.formats import parse_parquet

        path = self.prompts_file
        if not path.is_file():
            raise InputError(f"{path} does not exist; make it with `dvc repro prompts`")
        remedy = "`dvc repro prompts` makes it again"
        frame = parse_parquet(path.read_bytes(), str(path), remedy)
        if lacking := sorted({"split", "prompt"} - set(frame.columns)):
            raise InputError(f"{path} lacks the column {lacking[0]}; {remedy}")
        found: list[str] = frame.loc[frame["split"] == split, "prompt"].tolist()
        if not found or not all(isinstance(prompt, str) for prompt in found):
            raise InputError(f"{path} has no prompts of the split {split}, or others than texts; {remedy}")
        return found

    def health(self) -> dict[str, Any]:
        """Read probes, spikes and the verdict of training."""
        from rcm_core.storage.checked_json import read
        from rcm_core.storage.schemas import HealthFacts

        facts: dict[str, Any] = read(self.health_file, HealthFacts, "train")
        return facts

    def selection(self) -> dict[str, Any]:
        """Read the selection."""
        from rcm_core.storage.checked_json import read
        from rcm_core.storage.schemas import Selection

        facts: dict[str, Any] = read(self.selection_file, Selection, "select")
        return facts

    def metrics(self) -> dict[str, Any]:
        """Read the numbers with timings."""
        from rcm_core.storage.checked_json import read
        from rcm_core.storage.schemas import Metrics

        facts: dict[str, Any] = read(self.metrics_file, Metrics, "evaluate")
        return facts

    def shown_metrics(self) -> dict[str, Any]:
        """Read the numbers that tables show; others may be absent."""
        from rcm_core.storage.checked_json import read
        from rcm_core.storage.schemas import ShownMetrics

        facts: dict[str, Any] = read(self.metrics_file, ShownMetrics, "evaluate")
        return facts

    def quality(self) -> dict[str, Any]:
        """Read the numbers without timings."""
        from rcm_core.storage.checked_json import read
        from rcm_core.storage.schemas import Quality

        facts: dict[str, Any] = read(self.quality_file, Quality, "evaluate")
        return facts

    def sample_prompts(self) -> list[str]:
        """Read the prompts of the kept samples."""
        from rcm_core.storage.checked_json import read
        from rcm_core.storage.schemas import Prompts

        prompts: list[str] = read(self.sample_prompts_file, Prompts, "evaluate")
        return prompts


RELATIVE = RunFolder.of(Path())
"""The run folder as seen from its workspace: its paths are the names of inputs in records."""

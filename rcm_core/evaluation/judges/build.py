"""Factory of judges: the benchmark's own, or the one that the params name."""

from __future__ import annotations

from pathlib import Path

from rcm_core.config.sections import JudgeSection
from rcm_core.evaluation.judges.base import Judge
from rcm_core.registry import find_benchmark
from rcm_core.storage.fetch import folder_of
from rcm_core.storage.files import sha256_folder


def judge_for(data: str) -> Judge:
    """Return the judge of the benchmark ``rcm_core/benchmarks/<data>.py``, always with the same weights.

    InputError for an unknown benchmark.
    """
    from rcm_core.evaluation.judges.classifier import train_classifier
    from rcm_core.evaluation.judges.detector import load_detector
    from rcm_core.evaluation.judges.motion import MotionJudge
    from rcm_core.evaluation.judges.scenes import SceneJudge

    source = find_benchmark(data)
    match source.judge:
        case "scenes":
            return SceneJudge(load_detector(), source)
        case "motion":
            return MotionJudge(load_detector(), source)
    return train_classifier(data)


def judge_of(section: JudgeSection | None, data: str, workspace: Path, cache: Path, device: str) -> Judge:
    """Return the judge that the params name, or the benchmark's own.

    Relative paths start from ``workspace``. A judge on S3 is fetched into ``cache`` once: its content must not change.
    """
    if section is None:
        return judge_for(data)
    from rcm_core.evaluation.judges.image_text import OpenJudge, check_judge

    otherwise = (
        f"judge.network {section.network!r} is not an existing folder; give a folder or s3:// prefix with a CLIP or"
        " SigLIP in transformers layout"
    )
    # fetched only once, because workers of another run may be loading it
    folder = folder_of(section.network, section.endpoint, workspace, cache / "judges", otherwise, again=False)
    check_judge(folder)
    return OpenJudge(str(folder.absolute()), sha256_folder(folder), device)

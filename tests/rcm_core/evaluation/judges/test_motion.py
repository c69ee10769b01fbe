"""The judge of moving scenes accepts real clips and rejects still, reversed and changing ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rcm_core.benchmarks import scenes_video
from rcm_core.evaluation.bootstrap import Bootstrap
from rcm_core.evaluation.judges.base import Judge, unit_range
from rcm_core.evaluation.judges.build import judge_for
from rcm_core.evaluation.judges.detector import Seen
from rcm_core.evaluation.judges.tracking import follow, shows
from rcm_core.evaluation.metric import metric_of
from rcm_core.evaluation.metrics.frechet import frechet
from rcm_core.scenes.motion import Motion
from rcm_core.scenes.request import Thing

MEASURES = ("subject_consistency", "motion_smoothness", "dynamic_degree", "motion_following")


def real() -> tuple[torch.Tensor, list[Motion]]:
    clips, motions = scenes_video.compose_split("test")
    return unit_range(clips[:80]), motions[:80]


def prompts(motions: list[Motion]) -> list[str]:
    from rcm_core.scenes.request import NAMES
    from rcm_core.scenes.scans import WORDS

    def said(thing: Thing, way: str) -> str:
        return f"a {NAMES[thing.colour] + ' ' if thing.colour >= 0 else ''}{WORDS[thing.digit]} moving {way}"

    return [" and ".join(said(t, w) for t, w in zip(m.things, m.directions)) for m in motions]


def test_wrong_clips_are_refused() -> None:
    judge = judge_for("scenes_video")
    clips, motions = real()
    asked = prompts(motions)
    assert judge.correct(clips, asked).mean() >= 0.95
    assert judge.correct(clips.flip(2), asked).mean() == 0  # backwards
    assert judge.correct(clips[:, :, :1].expand_as(clips), asked).mean() == 0  # standing
    assert judge.correct(clips.flip(0), asked).mean() <= 0.05  # other things


def measures(judge: Judge, clips: torch.Tensor, asked: list[str]) -> dict[str, float]:
    """Return the values of the clips' metrics."""
    seen = judge.observe(clips, asked)
    return {name: metric_of(name).estimate(seen, Bootstrap(2, 0))["value"] for name in MEASURES}


def test_measures_of_real_still_and_changing_clips() -> None:
    judge = judge_for("scenes_video")
    clips, motions = real()
    asked = prompts(motions)
    good, still = (measures(judge, c, asked) for c in (clips, clips[:, :, :1].expand_as(clips)))
    means = dict(good)
    # the detector reads centres to 0.3 pixels, which is what real clips lack of perfect smoothness
    assert means.pop("motion_smoothness") >= 0.7
    assert min(means.values()) >= 0.95
    assert still["subject_consistency"] == pytest.approx(1, abs=1e-4)
    assert still["motion_smoothness"] == pytest.approx(1, abs=1e-3)
    assert still["dynamic_degree"] == still["motion_following"] == 0
    changing = torch.where(torch.arange(8).view(1, 1, 8, 1, 1) < 4, clips, clips.flip(0))
    worse = measures(judge, changing, asked)
    assert worse["subject_consistency"] < good["subject_consistency"] - 0.05
    assert worse["motion_smoothness"] < good["motion_smoothness"]


def test_features_see_the_direction() -> None:
    """Reversed clips have the same frames and differ only in the direction of motion."""
    judge = judge_for("scenes_video")
    left = [i for i, m in enumerate(scenes_video.compose_split("test")[1]) if set(m.directions) == {"left"}]
    clips = unit_range(scenes_video.compose_split("test")[0][left])
    half = len(clips) // 2
    one, two = judge.features(clips[:half]), judge.features(clips[half:])
    assert one.shape == (half, 64)
    assert np.isfinite(one).all()
    assert frechet(judge.features(clips.flip(2)[half:]), one) > 1.5 * frechet(two, one)


def test_tracks_follow_the_nearest_and_shows_wants_exactly() -> None:
    def at(digit: int, x: float, score: float = 0.9) -> Seen:
        return Seen(digit, 0, x, 16.0, score)

    frames = [[at(3, 4), at(5, 28)], [at(3, 26), at(5, 6)], [], [at(3, 8, 0.6)]]  # they change their digits
    things = (Thing(3), Thing(5))
    tracks = follow(things, frames, 2)
    assert tracks[0, :, 0] == pytest.approx([4, 6, np.nan, 8], nan_ok=True)
    assert tracks[1, :, 0] == pytest.approx([28, 26, np.nan, np.nan], nan_ok=True)
    assert np.isnan(follow((Thing(7),), frames, 2)).all()
    assert shows(things, frames[0])
    assert not shows((Thing(3),), frames[0])
    assert not shows((Thing(3, 1),), frames[3])

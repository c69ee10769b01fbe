"""The measures of clips in closed form: at rest, in uniform motion, jittering, the wrong way, another subject."""

from __future__ import annotations

import numpy as np
import pytest

from rcm_core.evaluation.metrics.dynamic_degree import dynamic
from rcm_core.evaluation.metrics.motion_following import following
from rcm_core.evaluation.metrics.motion_smoothness import motion_smoothness
from rcm_core.evaluation.metrics.subject_consistency import subject_consistency

FRAMES = 8
TIME = np.arange(FRAMES, dtype=float)
STILL = np.zeros((FRAMES, 2)) + 16
RIGHT = STILL + np.stack((2 * TIME, 0 * TIME), 1)
JITTER = STILL + np.stack((2 * (-1) ** TIME, 0 * TIME), 1)
UNSEEN = np.full((FRAMES, 2), np.nan)


def clip(*tracks: np.ndarray) -> np.ndarray:
    """``[1, K, T, 2]``"""
    return np.stack(tracks)[None]


def test_rest_and_uniform_motion_are_smooth_and_jitter_is_not() -> None:
    assert motion_smoothness(clip(STILL)) == [1.0]
    assert motion_smoothness(clip(RIGHT)) == [1.0]
    # neighbours are both 4 pixels to the other side: e = 4
    assert motion_smoothness(clip(JITTER)) == pytest.approx([1 / 5])
    assert motion_smoothness(clip(RIGHT, JITTER)) == pytest.approx([1 / 3])  # the mean of 0 and 4 is 2
    assert motion_smoothness(clip(RIGHT, UNSEEN)) == [1.0]
    assert motion_smoothness(clip(UNSEEN)) == [0.0]


def test_a_jump_of_d_pixels_costs_d_over_the_frames_inside() -> None:
    jump = STILL + np.stack((np.where(TIME >= 4, 9.0, 0.0), 0 * TIME), 1)
    # off by 4.5 in the frames before and after it, of 6 that have neighbours
    assert motion_smoothness(clip(jump)) == pytest.approx([1 / (1 + 9 / 6)])


def test_only_what_moves_is_dynamic() -> None:
    slow = STILL + np.stack((0.5 * TIME, 0 * TIME), 1)
    clips = np.concatenate([clip(t, UNSEEN) for t in (STILL, slow, RIGHT, JITTER, UNSEEN)])
    assert dynamic(clips).tolist() == [False, False, True, True, False]
    assert dynamic(clip(STILL, RIGHT)).tolist() == [True]


@pytest.mark.parametrize(
    ("direction", "right"), [((1, 0), True), ((-1, 0), False), ((0, 1), False), ((0, -1), False)]
)
def test_only_the_right_way_is_following(direction: tuple[int, int], right: bool) -> None:
    asked = np.array([[direction, (0, 0)]], dtype=float)
    assert following(clip(RIGHT, UNSEEN), asked).tolist() == [right]
    assert following(clip(STILL, UNSEEN), asked).tolist() == [False]
    assert following(clip(JITTER, UNSEEN), asked).tolist() == [False]
    assert following(clip(UNSEEN, UNSEEN), asked).tolist() == [False]


def test_every_object_must_follow_and_diagonals_do_not() -> None:
    asked = np.array([[(1, 0), (-1, 0)]], dtype=float)
    assert following(clip(RIGHT, RIGHT[::-1]), asked).tolist() == [True]
    assert following(clip(RIGHT, RIGHT), asked).tolist() == [False]
    diagonal = STILL + 2 * TIME[:, None]
    assert following(clip(diagonal, UNSEEN), np.array([[(1, 0), (0, 0)]], dtype=float)).tolist() == [False]


def test_frames_in_which_nothing_is_seen_are_passed_over() -> None:
    gaps = RIGHT.copy()
    gaps[[0, 3]] = np.nan
    assert following(clip(gaps, UNSEEN), np.array([[(1, 0), (0, 0)]], dtype=float)).tolist() == [True]
    assert motion_smoothness(clip(gaps)) == [1.0]
    assert dynamic(clip(gaps)).tolist() == [True]


def test_a_subject_is_consistent_with_itself_and_not_with_another() -> None:
    one, other = np.eye(4)[0], np.eye(4)[1]
    same = np.tile(one, (FRAMES, 1))
    changed = np.where(TIME[:, None] < 4, one, other)
    gone = np.where(TIME[:, None] < 4, one, 0.0)
    scores = subject_consistency(np.stack((same, 3 * same, changed, gone)))
    # of 7 frames: 3 like the first and the one before; then none like the first, one change, 3 like the one before
    assert scores == pytest.approx([1.0, 1.0, (3 + 3 / 2) / 7, 3 / 7])

"""Incompatible switches are refused in one sentence that names them, and not the whole section."""

from __future__ import annotations

from typing import Any

import pytest
from presets import preset

from rcm_core.errors import InputError
from rcm_core.training.distill import build_method

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "cdm",
        {"rollout_low": 0.9, "rollout_high": 0.5},
        "rollout_low = 0.9 is not below rollout_high = 0.5; change one of them",
    ),
    (
        "cdm",
        {"matching_time_min": 0.5, "matching_time_max": 0.5},
        "matching_time_min = 0.5 is not below matching_time_max = 0.5; change one of them",
    ),
    (
        "cdm",
        {"matching_weight": 0.0, "off_trajectory_weight": 0.0},
        "matching_weight and off_trajectory_weight are both 0: augmentation alone diverges; set one",
    ),
    ("dmd2-gan", {"gan_blocks": []}, "gan_weight > 0 needs gan_critic_weight > 0 and gan_blocks"),
    ("dmd2-gan", {"gan_critic_weight": 0.0}, "gan_weight > 0 needs gan_critic_weight > 0 and gan_blocks"),
    (
        "dmd2",
        {"matching_time_min": 0.2},
        "only one of matching_time_min and matching_time_max is set; set both or neither",
    ),
    (
        "rcm",
        {"matching_time_min": 0.8, "matching_time_max": 0.2},
        "matching_time_min = 0.8 is not below matching_time_max = 0.2; change one of them",
    ),
    (
        "rcm",
        {"fixed_times": [0.5, 0.9, 0.3]},
        "fixed_times = [0.5, 0.9, 0.3]: expected angles that descend between simulation_start and 0",
    ),
    (
        "sana_sprint",
        {"consistency_weight": 0.0, "adversarial_weight": 0.0},
        "consistency_weight and adversarial_weight are both 0; raise one",
    ),
    (
        "sana_sprint",
        {"blocks": []},
        "blocks is empty; name blocks of the teacher, or set adversarial_weight to 0",
    ),
    (
        "scm",
        {"learn_from": "data", "guidance": [1.0, 2.0], "guidance_at": 1.5},
        "learn_from = data has no guidance to embed; set guidance and guidance_at to null",
    ),
    ("scm", {"guidance": [1.0]}, "expected guidance and guidance_at together, or null for both"),
    ("tbcm", {"trajectory_steps": 5, "pairs": 9}, "pairs = 9 exceeds the 4 points of a route"),
    (
        "tbcm",
        {"trajectories": "recorded", "guidance": [1.0], "guidance_at": 1.0},
        "recorded trajectories have the teacher's own guidance; set guidance to null",
    ),
    (
        "dcm",
        {"points": 4, "skip": 4},
        "skip = 4: expected less than points = 4",
    ),
]


@pytest.mark.parametrize(
    ("name", "changes", "sentence"), REFUSED, ids=[f"{n}-{'-'.join(c)}" for n, c, _ in REFUSED]
)
def test_the_sentence_names_the_settings_and_nothing_else(
    name: str, changes: dict[str, Any], sentence: str
) -> None:
    parameters = preset(name)["method"]
    assert changes.keys() <= parameters.keys()
    build_method(parameters, "exact")
    with pytest.raises(InputError) as caught:
        build_method(parameters | changes, "exact")
    assert str(caught.value) == f"params.yaml: method: {sentence}"

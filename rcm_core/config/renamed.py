"""Renamed keys and values of params.yaml: the error for an old one names the new one."""

from __future__ import annotations

from collections.abc import Collection

RENAMED: dict[str, dict[str, str]] = {
    "calm_r": {"method": "tangent_anneal_to"},
    "calm_start": {"method": "tangent_anneal_start"},
    "calm_steps": {"method": "tangent_anneal_steps"},
    "compare_high": {"method": "matching_time_max"},
    "compare_low": {"method": "matching_time_min"},
    "floor": {"method": "min_normaliser"},
    "kept": {"evaluate": "keep_pixels"},
    "merge": {"method": "fake_score_ema_rate"},
    "off_weight": {"method": "off_trajectory_weight"},
    "route_steps": {"method": "trajectory_steps"},
    "routes": {"trajectories": "keep_trajectories", "method": "trajectories"},
}
"""Old key -> section -> new key."""
RENAMED_VALUES = {"gan_backbone": {"fake": "fake_score", "unguided": "teacher"}}
"""Key -> old value -> new value."""


def new_name(key: str, known: Collection[str]) -> str | None:
    """Return the new name, among ``known``, of the old ``key``, or None if ``key`` is no old key."""
    return next((name for name in RENAMED.get(key, {}).values() if name in known), None)


def new_path(path: str) -> str | None:
    """Return the new ``section.key`` for the old ``path``, or None. Without a section it may name several."""
    section, _, key = path.rpartition(".")
    found = [f"{owner}.{name}" for owner, name in RENAMED.get(key, {}).items() if section in ("", owner)]
    return " or ".join(found) or None

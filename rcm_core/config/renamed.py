"""Renamed keys of params.yaml: the error for an old key names the new one."""

from __future__ import annotations

from collections.abc import Collection

RENAMED: dict[str, tuple[str, ...]] = {
    "calm_r": ("tangent_anneal_to",),
    "calm_start": ("tangent_anneal_start",),
    "calm_steps": ("tangent_anneal_steps",),
    "compare_high": ("matching_time_max",),
    "compare_low": ("matching_time_min",),
    "floor": ("min_normaliser",),
    "kept": ("keep_pixels",),
    "merge": ("fake_score_ema_rate",),
    "off_weight": ("off_trajectory_weight",),
    "route_steps": ("trajectory_steps",),
    "routes": ("keep_trajectories", "trajectories"),
}
"""Old key -> its new names; each section has one of them."""


def new_name(key: str, known: Collection[str]) -> str | None:
    """Return the new name, among ``known``, of the old ``key``, or None if ``key`` is no old key."""
    return next((name for name in RENAMED.get(key, ()) if name in known), None)

"""Environment variables of Ray. They must be set before Ray is imported, here and in its child processes."""

from __future__ import annotations

import os
from pathlib import Path

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",  # one machine, loopback only
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report waits for the controller's next poll (2 s)
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # infra.ray.training streams what rank 0 prints
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # at 15 daemons take precedence, and a training is as slow as its slowest thread
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}


def prepare(workspace: Path) -> None:
    """Set the variables that are not set; workers import the packages of ``workspace``, even if it is a worktree."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    ours = [str(workspace), str(workspace / "kernels")]
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in ours]
    os.environ["PYTHONPATH"] = os.pathsep.join(ours + others)

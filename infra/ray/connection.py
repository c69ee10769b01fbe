"""Joining a Ray that runs, or starting one on loopback."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from infra.ray.environment import prepare
from rcm_core.errors import InputError
from rcm_core.units import MIB

OBJECT_STORE = 200 * MIB
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
CONNECT_SECONDS = 5


def cores() -> int:
    """CPUs that a local Ray offers: those of this process, and two at least (threads may share a core)."""
    return max(2, len(os.sched_getaffinity(0)))


def start_local(workspace: Path) -> str:
    """Starts a Ray on loopback that ends with this process; returns its address."""
    prepare(workspace)
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    context = ray.init(
        "local", num_cpus=cores(), object_store_memory=OBJECT_STORE, include_dashboard=False, **QUIET
    )
    _restore(on_terminate)
    return context.address_info["gcs_address"]


def connect(workspace: Path, address: str) -> None:
    """Joins the Ray at ``address`` (``host:port``); InputError if none answers."""
    prepare(workspace)
    import ray

    host, _, port = address.rpartition(":")
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        # Ray itself would keep trying for minutes.
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        # its workers are not our children: without this they would import what their machine has
        ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}, **QUIET)
    except (OSError, ValueError) as error:
        raise InputError(
            f"RAY_ADDRESS = {address}: no Ray answers there ({error}); expected host:port of a running Ray;"
            " unset it and a local one is started"
        ) from error
    _restore(on_terminate)


def _restore(on_terminate: Any) -> None:
    """``ray.init`` puts its own SIGTERM handler in place (possible in the main thread only)."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)

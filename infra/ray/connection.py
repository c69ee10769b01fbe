"""Join a running Ray, or start one on loopback."""

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
    """Return the CPUs of a local Ray: those of this process, at least two (threads may share a core)."""
    return max(2, len(os.sched_getaffinity(0)))


def start_local(workspace: Path) -> str:
    """Start a Ray on loopback that ends with this process; return its address."""
    prepare(workspace)
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    context = ray.init(
        "local", num_cpus=cores(), object_store_memory=OBJECT_STORE, include_dashboard=False, **QUIET
    )
    _restore(on_terminate)
    return context.address_info["gcs_address"]


def connect(workspace: Path, address: str) -> None:
    """Join the Ray at ``address`` (``host:port``); InputError if none answers."""
    prepare(workspace)
    import ray

    host, _, port = address.rpartition(":")
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        # Ray itself would retry for minutes.
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
        # its workers are not our children and would otherwise import their machine's packages
        ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}}, **QUIET)
    except (OSError, ValueError) as error:
        raise InputError(
            f"RAY_ADDRESS = {address}: no Ray answers there ({error}); expected host:port of a running Ray;"
            " start it, or unset RAY_ADDRESS to use a local Ray"
        ) from error
    _restore(on_terminate)


def _restore(on_terminate: Any) -> None:
    """Restore the SIGTERM handler that ``ray.init`` replaces (possible in the main thread only)."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)

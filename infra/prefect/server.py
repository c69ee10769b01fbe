"""A Prefect server and worker on this machine: running ones, or our own."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from infra.prefect.api import Api
from infra.prefect.processes import Daemon, end_tree, engines_of, python_command
from infra.state import state_home
from rcm_core.errors import InputError

POOL = "rcm-pool"
PORT = "RCM_PREFECT_PORT"
PLUGIN = {"PREFECT_PLUGINS_ENABLED": "true"}
"""Environment that enables ``flows.prefect_plugin``."""
DATABASE = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
"""Prefect's variable for the server's database, and its former name."""
POSTGRES_PORT = 5432
START_SECONDS = 180
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Local:
    """Data folder of the server and the worker of the project at ``root``."""

    root: Path

    @property
    def home(self) -> Path:
        return state_home(self.root) / "prefect"

    @property
    def server(self) -> Daemon:
        return Daemon(self.home, "server")

    @property
    def worker(self) -> Daemon:
        return Daemon(self.home, "worker")

    @property
    def keeper(self) -> Daemon:
        return Daemon(self.home, "keeper")

    @property
    def worker_name(self) -> str:
        """Return the name of this project's worker on this machine; the server records it in every run it takes."""
        place = f"{socket.gethostname()} {self.root}"
        return f"rcm-{hashlib.sha256(place.encode()).hexdigest()[:8]}"

    def starting(self, wait_seconds: float) -> FileLock:
        """Hold the lock for starting daemons; one process at a time starts or restarts them."""
        self.home.mkdir(parents=True, exist_ok=True)
        return FileLock(self.home / "starting.lock", timeout=wait_seconds)

    def environment(self, url: str) -> dict[str, str]:
        """Return the environment of our Prefect processes: our data folder and packages, no telemetry.

        Leases of concurrency slots are in files, so that a restarted server knows them. Flow runs send a heartbeat
        every 30 seconds.
        """
        ours = os.pathsep.join([str(self.root), str(self.root / "kernels")])
        return (
            {"PREFECT_SERVER_DATABASE_TIMEOUT": "60"}
            | os.environ
            | {
                "PREFECT_HOME": str(self.home),
                "PREFECT_API_URL": url,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
                "DO_NOT_TRACK": "1",
                "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "0.5",
                "PREFECT_WORKER_QUERY_SECONDS": "2",
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
                "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
                "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "10",
                "PREFECT_PLUGINS_ENABLED": "false",
                "PYTHONPATH": ours,
                "PYTHONUNBUFFERED": "1",
            }
        )


def known_api_url(folder: Path) -> str | None:
    """Return the address of the project's own server, if it runs."""
    return Local(folder).server.facts().get("url")


def ensure_server(root: Path) -> tuple[str, bool]:
    """Return the API's address, and whether this call started the server.

    The address is ``PREFECT_API_URL`` if set, else 127.0.0.1 at ``RCM_PREFECT_PORT`` (4200). Raises InputError if the
    former does not answer, or if the port is in use: by the server of another user or project, whose deployments ours
    would replace, or by another program. Raises InputError, too, if the server's database does not answer.
    """
    given = os.environ.get("PREFECT_API_URL")
    if given:
        if not api(given).healthy():
            raise InputError(
                f"PREFECT_API_URL = {given}: no Prefect server answers there; start it or unset it"
            )
        return given, False
    local = Local(root)
    url = local.server.facts().get("url") or f"http://127.0.0.1:{_port()}/api"
    port, running = int(url.rpartition(":")[2].removesuffix("/api")), local.server.running()
    if not running and Api(url).healthy():
        raise InputError(
            f"port {port} is taken by the Prefect server of another user or project; set {PORT} to a free port,"
            f" or PREFECT_API_URL to {url} to use that server"
        )
    if not running and _is_taken(port):
        raise InputError(
            f"port {port} is taken by something that is not a Prefect server; end that,"
            f" or set {PORT} to a free port"
        )
    if running and Api(url).healthy():
        return url, False
    if not running:
        _require_database()
        arguments = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
        env = local.environment(url) | PLUGIN  # the plugin makes SQLite transactions lock before they read
        started = local.server.start(python_command("prefect", *arguments), root, env, {"url": url})
        _wait(lambda: Api(url).healthy(), started, local.server, "Prefect's server")
    return url, True


def ensure_worker(root: Path, url: str) -> bool:
    """Ensure that a worker of our pool runs; return whether this call started it."""
    local = Local(root)
    # The server still lists a worker that has just ended as online, so check the process of ours.
    others = [w for w in api(url).online_workers(POOL) if w["name"] != local.worker_name]
    if others or local.worker.running():
        return False
    arguments = ["worker", "start", "--pool", POOL, "--type", "process", "--limit", "1"]
    arguments += ["--name", local.worker_name]
    env = local.environment(url) | PLUGIN  # temporary files of its own
    started = local.worker.start(python_command("prefect", *arguments), root, env, {"url": url})
    _wait(lambda: api(url).has_pool(POOL), started, local.worker, "Prefect's worker")
    return True


def deploy(root: Path, url: str) -> None:
    """Deploy prefect.yaml: deployments, schedules, triggers, limits."""
    command = python_command("prefect", "--no-prompt", "deploy", "--all")
    env = Local(root).environment(url)
    answer = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise RuntimeError(
            f"`prefect deploy --all` failed: {(answer.stderr or answer.stdout).strip()[-800:]}"
        )


def ensure_keeper(root: Path) -> bool:
    """Start the keeper (``infra.prefect.keeper``) if it does not run; return whether this call started it."""
    local = Local(root)
    if local.keeper.running():
        return False
    ours = os.pathsep.join([str(root), str(root / "kernels")])
    local.keeper.start(python_command("infra.prefect.keeper"), root, os.environ | {"PYTHONPATH": ours}, {})
    return True


def stop(root: Path) -> list[str]:
    """Stop our keeper, worker (with its runs, also those of a killed worker) and server; return the names that ran."""
    local = Local(root)
    ended = [daemon.name for daemon in (local.keeper, local.worker) if daemon.stop()]
    for process in engines_of(local.home):
        end_tree(process)
    return [*ended, *(["server"] if local.server.stop() else [])]


def api(url: str) -> Api:
    return Api(url, os.environ.get("PREFECT_API_KEY"))


def _port() -> int:
    text = os.environ.get(PORT, "4200")
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise InputError(f"{PORT} = {text!r}: expected a port number, 1 to 65535")
    return int(text)


def _require_database() -> None:
    """Raise InputError if nothing answers at the host and port of the database named in the environment."""
    for name in DATABASE:
        url = urlsplit(os.environ.get(name, ""))
        if url.hostname is None:  # not set, or SQLite
            continue
        try:
            socket.create_connection((url.hostname, url.port or POSTGRES_PORT), timeout=10).close()
        except (OSError, ValueError) as error:
            raise InputError(
                f"{name}: no database answers at {url.netloc.rpartition('@')[2]} ({error}); start it, or unset {name}"
                " to use SQLite"
            ) from error


def _is_taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], daemon: Daemon, what: str) -> None:
    """Wait until ``ready``; RuntimeError with the log's last lines if the process ends first or takes too long."""
    limit = time.monotonic() + START_SECONDS
    while not ready():
        if _wait_for_end(process) or time.monotonic() > limit:
            words = daemon.last_words()
            daemon.stop()
            raise RuntimeError(f"{what} did not come up: {words} (whole log: {daemon.log})")


def _wait_for_end(process: subprocess.Popen[bytes]) -> bool:
    """Wait a moment for the process to end."""
    try:
        process.wait(POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True

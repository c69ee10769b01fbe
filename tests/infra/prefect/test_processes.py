"""Daemons are recorded, end with all their descendants, and are never confused with other processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
from projects import free_port
from workspaces import wait_for

from infra.prefect.processes import Daemon
from infra.prefect.server import ensure_server, known_api_url
from rcm_core.errors import InputError

PARENT = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"], start_new_session=True)
print(child.pid, flush=True)
signal.pause()
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path, "toy")


def started(daemon: Daemon) -> tuple[subprocess.Popen[bytes], int]:
    """Start a parent with a child in another session; return the parent and the child's process id."""
    process = daemon.start([sys.executable, "-u", "-c", PARENT], daemon.folder, os.environ, {"url": "x"})
    wait_for("number of the child", lambda: daemon.log.read_text().endswith("\n"), daemon.log, process)
    return process, int(daemon.log.read_text())


def test_stop_ends_the_whole_family(daemon: Daemon) -> None:
    parent, child = started(daemon)
    assert daemon.facts() == {"url": "x"}
    assert daemon.stop()
    parent.wait()
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert daemon.running() is None
    assert not daemon.stop()


def test_a_record_of_a_process_that_is_gone_counts_for_nothing(daemon: Daemon) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    daemon.record.write_text(f'{{"pid": {process.pid}, "created": 1.0, "facts": {{}}}}')
    assert daemon.running() is None


def test_a_reused_process_number_is_not_ours(daemon: Daemon) -> None:
    daemon.record.write_text(f'{{"pid": {os.getpid()}, "created": 1.0, "facts": {{}}}}')
    assert daemon.running() is None
    assert not daemon.stop()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RCM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    return tmp_path


def test_a_taken_port_is_named_with_the_setting_that_moves_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        other.settimeout(0)
        monkeypatch.setenv("RCM_PREFECT_PORT", str(port))
        other.close()
        script = (
            "import http.server as h; "
            f"h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).serve_forever()"
        )
        web = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        wait_for("web server", lambda: _listens(port), process=web)
        with pytest.raises(InputError, match=f"port {port} is taken .* set RCM_PREFECT_PORT to a free port"):
            ensure_server(home)
    finally:
        web.kill()
        web.wait()
    assert known_api_url(home) is None


class Healthy(BaseHTTPRequestHandler):
    """Handler that answers like another user's Prefect server."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def test_another_s_server_is_not_used_unasked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), Healthy) as other:
        port = other.server_address[1]
        monkeypatch.setenv("RCM_PREFECT_PORT", str(port))
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            with pytest.raises(
                InputError, match=f"port {port} is taken by the Prefect server of another user"
            ):
                ensure_server(home)
            monkeypatch.setenv("PREFECT_API_URL", url := f"http://127.0.0.1:{port}/api")
            assert ensure_server(home) == (url, False)
        finally:
            other.shutdown()
            thread.join()


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("port", ["none", "0", "70000"])
def test_a_port_that_is_none_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("RCM_PREFECT_PORT", port)
    with pytest.raises(InputError, match=f"RCM_PREFECT_PORT = '{port}': expected a port number"):
        ensure_server(home)


def test_a_named_server_that_does_not_answer_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    with pytest.raises(InputError, match="no Prefect server answers there"):
        ensure_server(home)


@pytest.mark.parametrize("place", ["127.0.0.1:1", "127.0.0.1:none"])
def test_a_database_that_does_not_answer_is_named_without_its_password(
    home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setenv("RCM_PREFECT_PORT", str(free_port()))
    name = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
    monkeypatch.setenv(name, f"postgresql+asyncpg://prefect:secret@{place}/prefect")
    with pytest.raises(InputError, match=f"^{name}: no database answers at {place} .* unset {name}") as error:
        ensure_server(home)
    assert "secret" not in str(error.value)
    assert known_api_url(home) is None

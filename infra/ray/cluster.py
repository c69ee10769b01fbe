"""One Ray cluster for all stages of a flow run. It starts at the first request of a stage and ends with the run.

``python -m infra.ray.cluster`` is the keeper: a small process that listens on loopback. At the first request it starts
Ray and answers with the address, or with the reason why Ray did not start; the stage's next attempt then starts
another. The keeper ends when its stdin closes, so it always ends with the process that started it. Stages keep their
connection open, so they notice that end too (``infra.ray.lifeline``).
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from infra.interrupt import end_on_sigterm
from infra.prefect.processes import end_tree
from infra.ray.lifeline import CLUSTER, NO_RAY
from rcm_core.errors import named_line


@contextmanager
def shared_cluster(workspace: Path, env: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Yield the environment with which stages share one Ray, which ends with the block."""
    keeper = subprocess.Popen(
        [sys.executable, "-m", "infra.ray.cluster"],
        cwd=workspace,
        env=dict(env),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        yield {CLUSTER: keeper.stdout.readline().strip()}
    finally:
        keeper.stdin.close()
        keeper.wait()
        keeper.stdout.close()


def keep(workspace: Path) -> None:
    """Serve the address of one Ray until stdin closes."""
    with socket.create_server(("127.0.0.1", 0)) as server, selectors.DefaultSelector() as ready:
        print(f"127.0.0.1:{server.getsockname()[1]}", flush=True)
        ready.register(server, selectors.EVENT_READ)
        ready.register(sys.stdin, selectors.EVENT_READ)
        address = os.environ.get("RAY_ADDRESS", "")
        stages: list[socket.socket] = []
        while True:
            for key, _ in ready.select():
                if key.fileobj is sys.stdin:
                    return
                if key.fileobj is server:
                    stages.append(server.accept()[0])
                    ready.register(stages[-1], selectors.EVENT_READ)
                    continue
                stage = next(s for s in stages if s is key.fileobj)
                if not _asks(stage):
                    ready.unregister(stage)
                    stages.remove(stage)
                    stage.close()
                    continue
                try:
                    answer = address = address or _start(workspace)
                except Exception as error:
                    answer = NO_RAY + named_line(error)
                    for child in psutil.Process().children():  # only Ray's processes
                        end_tree(child)
                with suppress(OSError):  # the stage may have ended
                    stage.sendall(f"{answer}\n".encode())


def _asks(stage: socket.socket) -> bool:
    """Return whether the stage asked for the address; False if it disconnected."""
    try:
        return bool(stage.recv(1))
    except ConnectionError:
        return False


def _start(workspace: Path) -> str:
    from infra.ray.connection import start_local

    return start_local(workspace)


if __name__ == "__main__":
    end_on_sigterm()
    keep(Path.cwd())

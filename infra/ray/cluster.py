"""One Ray for all stages of a flow run, started when a stage first asks, gone when the run is gone.

``python -m infra.ray.cluster`` is the keeper: a small process that listens on loopback, starts Ray on the
first question and answers with its address, or with why it did not start: then the next question, that of the
stage's next attempt, starts another. It ends when its stdin closes, that is with the process that started it, however
that ends. Stages keep their connection open, so they see it end too (``infra.ray.lifeline``).
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
    """What stages need in their environment to share one Ray; nothing of it is left when the block ends."""
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
    """Serves the address of one Ray until stdin ends."""
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
                    for left in psutil.Process().children():  # the keeper has no others
                        end_tree(left)
                with suppress(OSError):  # it may be gone by now
                    stage.sendall(f"{answer}\n".encode())


def _asks(stage: socket.socket) -> bool:
    """Or else it is gone."""
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

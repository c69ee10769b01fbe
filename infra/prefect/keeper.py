"""The keeper: ``python -m infra.prefect.keeper`` checks every 10 seconds whether server, worker and runs are alive.

It restarts a dead server or worker, settles runs whose process is gone (``infra.prefect.settle``), and reduces a storm
of events to one run (``infra.prefect.storms``).
"""

from __future__ import annotations

import time
from pathlib import Path

from filelock import Timeout

from infra.interrupt import end_on_sigterm
from infra.prefect.server import Local, api, ensure_server, ensure_worker
from infra.prefect.settle import Settler
from infra.prefect.storms import coalesce
from rcm_core.errors import InputError

LOOK_SECONDS = 10.0


def look(root: Path, settlers: dict[str, Settler]) -> list[str]:
    """Restart dead processes and settle their runs; return a line for each. ``settlers`` has one settler per server."""
    with Local(root).starting(0):
        url, server = ensure_server(root)
        lines = ["the server was gone: started again"] if server else []
        lines += settlers.setdefault(url, Settler(root, api(url))).look()
        lines += coalesce(api(url))
        if ensure_worker(root, url):
            lines.append("the worker was gone: started again")
    return lines


def keep(root: Path) -> None:
    """Look until SIGTERM. Log an error of one look and retry in the next."""
    settlers: dict[str, Settler] = {}
    while True:
        time.sleep(LOOK_SECONDS)
        try:
            lines = look(root, settlers)
        except Timeout:
            continue  # ``rcm up`` or ``rcm distill`` is starting them
        except (InputError, RuntimeError) as error:
            lines = [f"error: {error}"]
        for line in lines:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    end_on_sigterm()
    keep(Path.cwd())

"""Loops and functions that Ray's workers can import from a separate workspace; a Prefect server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from projects import free_port
from workspaces import wait_for

from infra.prefect.processes import end_tree
from infra.prefect.server import Local, api

TOYS = '''
"""Written by tests/infra/conftest.py."""
import os
import signal
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from rcm_core.errors import InputError
from rcm_core.training import distill


def square(number):
    return number * number, torch.get_num_threads(), os.getcwd()


def dies_once(job):
    marker, number = job
    if number == 3 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def dies(place):
    with Path(place).open("a") as times:
        times.write(".")
    os.kill(os.getpid(), signal.SIGKILL)


def refuses(number):
    raise InputError(f"no {number}; give another")


def loads(job):
    """The process; what it has loaded so far, each with the networks that it held besides."""
    import gc

    from diffusers import WanTransformer3DModel
    from rcm_core.models import wan
    from rcm_core.samplers.jobs import sample

    if not hasattr(wan, "counted"):
        wan.counted, load = [], wan.load_network

        def counting(folder):
            held = sum(isinstance(found, WanTransformer3DModel) for found in gc.get_objects())
            wan.counted.append((str(folder), held))
            return load(folder)

        wan.load_network = counting
    sample(job)
    return os.getpid(), list(wan.counted)


def count(context, spec):
    """Sums 1 + 2 + ... over all ranks; ``spec["kill"]`` = (rank, step, marker) dies there, once."""
    folder = context.resume()
    start, total = map(int, (folder / "sum").read_text().split()) if folder else (0, 0)
    if context.rank == 0:
        print(f"from step {start} on {context.world} ranks, {torch.get_num_threads()} threads")
    for step in range(start, spec["steps"]):
        if spec.get("kill") and (context.rank, step) == tuple(spec["kill"][:2]):
            if not Path(spec["kill"][2]).exists():
                Path(spec["kill"][2]).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        value = torch.tensor([step + 1])
        dist.all_reduce(value)
        total += int(value)
        if (step + 1) % 5 == 0:
            with tempfile.TemporaryDirectory() as checkpoint:
                if context.rank == 0:
                    (Path(checkpoint) / "sum").write_text(f"{step + 1} {total}")
                context.report({"step": step}, Path(checkpoint), step + 1)
    if context.rank == 0:
        Path(spec["out"]).write_text(str(total))


def patient(context, spec):
    """``distill.loop``; a rank alone pauses after seven steps and two checkpoints, until Ray ends it for more ranks."""
    trainer = distill.assemble(context, spec)
    step, taken = trainer.train_step, []

    def pausing(number):
        taken.append(number)
        if context.world == 1 and len(taken) > 7:
            signal.pause()
        return step(number)

    trainer.train_step = pausing
    trainer.run()
    distill.finish(trainer, spec)


def refusing_loop(context, spec):
    with Path(spec["attempts"]).open("a") as attempts:
        attempts.write(f"{context.rank}\\n")
    raise InputError("the shard is corrupt; make it again")


def hangs(context, spec):
    """Reports once, then waits to be killed."""
    with tempfile.TemporaryDirectory() as checkpoint:
        (Path(checkpoint) / "sum").write_text("5 15")
        context.report({}, Path(checkpoint), 5)
    context.report({}, None, 5)  # the controller has seen the checkpoint when it answers this
    Path(spec["ready"]).touch()
    signal.pause()
'''


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create a workspace with the module ``toys``, importable here and in workers."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / "toys.py").write_text(TOYS)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("toys", None)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of an empty server."""
    home, port = tmp_path_factory.mktemp("server"), free_port()
    url = f"http://127.0.0.1:{port}/api"
    env = Local(home).environment(url) | {"PREFECT_HOME": str(home)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    with (
        (home / "log").open("w") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=log) as process,
    ):
        try:
            wait_for("server", api(url).healthy, home / "log", process)
            yield url
        finally:
            if process.poll() is None:
                end_tree(psutil.Process(process.pid))

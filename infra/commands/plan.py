"""``rcm plan``: memory and time of a training as tables. A layout that does not fit is refused with one that does."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path

import torch
from rich.console import Console

from infra.commands.tables import print_table
from infra.params import compose_aside
from infra.state import state_home
from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.preflight.cost import Cost, training_cost, trajectories_cost
from rcm_core.preflight.disk import Written, disk_use
from rcm_core.preflight.dry_runs import Rehearsals, Run
from rcm_core.preflight.estimate import Estimate, estimate
from rcm_core.preflight.gpus import Gpu, gpu_of
from rcm_core.preflight.layout_search import SHARE, Choice, Search, attempts, choose, workers_needed
from rcm_core.preflight.teacher_spec import model_of, read_published
from rcm_core.units import GIB

PROCESSES = 2
"""Processes for dry runs: a layout needs at most two dry runs, and the next layout depends on both."""


def compose_planned(root: Path, overrides: Sequence[str], teacher: str | None, gpus: int | None) -> Params:
    """Return the project's params with ``overrides``; ``teacher``: a published network or folder, ``gpus``: workers."""
    given = [*_teacher(root, teacher, overrides), *overrides, *([f"train.workers={gpus}"] if gpus else [])]
    with compose_aside(root, given) as (_, params):
        return params


def _teacher(root: Path, teacher: str | None, overrides: Sequence[str]) -> list[str]:
    """Return overrides for ``teacher``: a published network selects its preset, if any, without a judge."""
    if teacher is None:
        return []
    facts = read_published(root).get(teacher)
    if facts is None:
        if not any(override.startswith("teacher=") for override in overrides):
            raise InputError(
                f"--teacher {teacher} is not a published network ({', '.join(read_published(root))}), and a folder does"
                " not define how to sample; add a preset, as in teacher=wan-1.3b judge.network=none, or teacher=open"
                " with teacher.family, teacher.shape and teacher.guidance"
            )
        return [f"teacher.source={teacher}"]
    named = [f"teacher.source={teacher}", "judge.network=none"]
    if (root / f"conf/teacher/{teacher}.yaml").is_file():
        return [f"teacher={teacher}", *named]
    return [
        "teacher=open",
        *named,
        f"teacher.family={facts['family']}",
        f"teacher.shape={facts['shape']}",
        "teacher.guidance=5.0",
    ]


def plan(root: Path, params: Params, name: str, utilisation: float, search: bool) -> None:
    """Print the plan of ``params`` on GPUs of type ``name``; InputError, after the table, if it does not fit."""
    gpu, model = gpu_of(name), model_of(params.teacher, root)
    with run_in_processes() as run, progress() as tell:
        rehearsals = Rehearsals(tell, state_home(root) / "plan", run)
        attempt = attempts(model, rehearsals)
        # if the layout is refused, the second estimate explains why
        asked = attempt(params) or Choice(params, estimate(model, params, rehearsals=rehearsals))
        found = choose(params, gpu, attempt) if search or not asked.fits(gpu) else Search(None, None)
    console = Console()
    _print_memory(asked.estimate, params, name, gpu)
    _print_costs(asked.estimate, params, gpu, utilisation)
    _print_disk(disk_use(model, params))
    if found.best is not None:
        console.print(
            f"the cheapest layout that fits: {' '.join(found.best.overrides)}",
            soft_wrap=True,
            highlight=False,
        )
        console.print(f"it needs {_gib(found.best.estimate.peak)} of each GPU", highlight=False)
    if not asked.fits(gpu):
        raise InputError(_refusal(asked, found, name, gpu))


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the current layout on stderr: in place on a terminal, else as a line each."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("rehearsing the training") as status:
            yield lambda what: status.update(f"rehearsing {what}")
    else:
        yield lambda what: print(f"rehearsing {what}", file=sys.stderr, flush=True)


@contextmanager
def run_in_processes() -> Iterator[Run]:
    """Yield ``map`` over processes that end with this one; the built-in ``map`` on a single core."""
    if len(os.sched_getaffinity(0)) == 1:
        yield map
        return
    # a fork needs no imports; outside Linux it is unsafe with the system's threads
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(PROCESSES, context, _begin) as pool:
        pool.submit(os.getpid).result()  # start all processes before this one has threads
        yield pool.map


def _begin() -> None:
    """Prepare a process for dry runs."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it without a traceback
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _refusal(asked: Choice, found: Search, name: str, gpu: Gpu) -> str:
    workers = asked.params.train.workers
    said = (
        f"the training needs {_gib(asked.estimate.peak)} on each of {workers} {name}, which has"
        f" {_gib(SHARE * gpu.memory)} for it; "
    )
    least = found.least
    if found.best is not None:
        own = asked.overrides
        return said + "would fit with " + " ".join(o for o in found.best.overrides if o not in own)
    if least is None:
        return said + "no layout fits on these GPUs; change train.batch or train.workers"
    needed = workers_needed(least, gpu)
    if needed is None:
        return said + (
            f"with {' '.join(least.overrides[1:])} it needs {_gib(least.estimate.peak)}, and more GPUs would not help:"
            " choose a GPU with more memory, or a smaller teacher.shape"
        )
    train = least.params.train
    ranks = needed // train.parallel.context
    batch = [f"train.batch={ranks}", *least.overrides[2:]] if train.batch % ranks else least.overrides[1:]
    return said + f"would fit with {needed} GPUs and {' '.join(batch)}"


def _print_memory(found: Estimate, params: Params, name: str, gpu: Gpu) -> None:
    train = params.train
    title = (
        f"{params.teacher.source}, method {params.method['name']}: GiB on each of {train.workers} {name},"
        f" {train.parallel.precision}"
    )
    rows = [[what, _number(size), "", ""] for what, size in found.held.items()]
    held = sum(found.held.values())
    for what, peak in found.phases.items():
        parts = (_number(size) if size else "" for size in (peak.gathered, peak.gradients))
        rows.append([f"+ {what}", _number(peak.alive - held), *parts])
    rows.append([f"peak, of {_number(gpu.memory)}", _number(found.peak), "", ""])
    heads = ("", "GiB", "of it gathered weights", "of it gradients")
    print_table(heads, rows, title=title, right=True, bold_last=True)


def _print_costs(found: Estimate, params: Params, gpu: Gpu, utilisation: float) -> None:
    costs: dict[str, Cost] = {
        f"training, {params.train.iterations} iterations": training_cost(found, params, gpu, utilisation),
        f"trajectories, {params.trajectories.samples} samples": trajectories_cost(
            found, params, gpu, utilisation
        ),
    }
    rows = [[w, f"{c.operations:.2e}", f"{c.hours:.3g}", f"{c.gpu_hours:.3g}"] for w, c in costs.items()]
    title = f"time at {utilisation:.0%} of the peak rate"
    print_table(("", "operations", "hours", "GPU-hours"), rows, title=title, right=True)


def _print_disk(written: Sequence[Written]) -> None:
    rows = [
        [w.what, str(w.number), f"{w.each / 1e9:.3g}", f"{w.total / 1e9:.3g}"] for w in written if w.number
    ]
    rows.append(["all", "", "", f"{sum(w.total for w in written) / 1e9:.3g}"])
    print_table(("", "number", "GB each", "GB"), rows, title="disk", right=True, bold_last=True)


def _number(size: float) -> str:
    return f"{size / GIB:.2f}" if size >= GIB / 100 else f"{size / GIB:.4f}"


def _gib(size: float) -> str:
    return f"{_number(size)} GiB"

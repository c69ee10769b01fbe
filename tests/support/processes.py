"""Ranks as processes of this machine, forked from one that has already imported the modules."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

IMPORTED = ["torch.distributed.fsdp", "rcm_core.training.distill", "rcm_core.models.wan"]
"""Modules imported by the fork server, which starts with the first rank; importing them takes a process seconds."""


def on_ranks(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Run ``function(rank, *arguments)`` on each of ``ranks`` until all have ended; an exception of one is raised."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    mp.start_processes(function, arguments, nprocs=ranks, start_method="forkserver")

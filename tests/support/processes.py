"""Ranks as processes of this machine, forked from one that has imported what they all need."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

IMPORTED = ["torch.distributed.fsdp", "rcm_core.training.distill", "rcm_core.models.wan"]
"""By the server of forks, which starts with the first rank; a process that imports them itself takes seconds."""


def on_ranks(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """``function(rank, *arguments)`` on each of ``ranks``, until all have ended; raises what one raised."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    mp.start_processes(function, arguments, nprocs=ranks, start_method="forkserver")

"""Workers of ``RayExecutor.map``: Ray actors that live as long as their stage, so each loads a network once.

With tasks instead of actors, Ray would end a GPU worker after each task.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infra.ray.capacity import capacity
from rcm_core.execution import Item, Result

LOST_WORKERS = 3
"""Maximum number of workers lost on one item; then the item fails."""


class Worker:
    """A process that keeps its CPU, its GPU and its loaded networks (``rcm_core.samplers.kept``) between jobs."""

    def ready(self) -> None:
        """Return when the process runs."""

    def call(self, shared: tuple[Callable[[Item], Result], str], item: Item) -> Result:
        """Return ``function(item)``, computed on one thread so that it does not depend on the number of cores."""
        import torch
        from rcm_kernels.plain import fastest_attention

        function, workspace = shared
        os.chdir(workspace)
        torch.set_num_threads(1)
        with fastest_attention():
            return function(item)


class Workers:
    """Workers of one executor, started when jobs need them; an item of a lost worker goes to another."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self._gpus = 0
        self._idle: list[Any] = []

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], label: str, gpus: int
    ) -> Iterator[Result]:
        """Yield results of ``function`` as they arrive; its exceptions are raised. Workers have ``gpus`` GPUs."""
        import ray

        if gpus != self._gpus:
            self.release()
        self._gpus = gpus
        jobs = _Jobs(ray.put((function, str(self.workspace))), items, label)
        try:
            while jobs.waiting or jobs.busy:
                while jobs.waiting and self._idle:
                    jobs.give(self._idle.pop())
                wanted = min(_most(gpus) - len(jobs.busy), len(jobs.waiting))
                while len(jobs.starting) < wanted:
                    jobs.expect(self._start())
                (done,), _ = ray.wait([*jobs.starting, *jobs.busy], num_returns=1)
                worker, results = jobs.take(done)
                if worker is not None and jobs.waiting:
                    jobs.give(worker)  # the worker computes while the caller uses the result
                elif worker is not None:
                    self._idle.append(worker)
                yield from results
        finally:
            for worker in (*jobs.starting.values(), *(worker for worker, *_ in jobs.busy.values())):
                ray.kill(worker)

    def release(self) -> None:
        """End all workers to free their CPUs and GPUs."""
        import ray

        while self._idle:
            ray.kill(self._idle.pop())

    def _start(self) -> Any:
        import ray

        return ray.remote(Worker).options(num_cpus=1, num_gpus=self._gpus).remote()


class _Jobs:
    """Items of one ``map``: the waiting ones, and each worker's current one."""

    def __init__(self, shared: Any, items: Sequence[Any], label: str) -> None:
        self.shared, self.label = shared, label
        self.waiting: deque[tuple[Any, int]] = deque((item, 0) for item in items)
        self.busy: dict[Any, tuple[Any, Any, int]] = {}
        self.starting: dict[Any, Any] = {}
        self._not_started = 0

    def give(self, worker: Any) -> None:
        """Give the next item to ``worker``."""
        item, lost = self.waiting.popleft()
        self.busy[worker.call.remote(self.shared, item)] = worker, item, lost

    def expect(self, worker: Any) -> None:
        """Note that ``worker`` has been started."""
        self.starting[worker.ready.remote()] = worker

    def take(self, done: Any) -> tuple[Any, list[Any]]:
        """Return the worker that answered, None if it was lost, and its result if it had an item.

        Raises the function's exception, or RuntimeError for an item that lost too many workers.
        """
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, OutOfMemoryError, RayTaskError

        started = done in self.starting
        worker, item, lost = (
            (self.starting.pop(done), None, self._not_started) if started else self.busy.pop(done)
        )
        try:
            result = ray.get(done)
        except RayTaskError as error:
            raise error.cause from error
        except (ActorDiedError, ActorUnavailableError, OutOfMemoryError) as error:
            ray.kill(worker)
            if lost == LOST_WORKERS:
                what = "workers did not start" if started else "a worker died"
                raise RuntimeError(
                    f"{self.label}: {what} {lost + 1} times{'' if started else ' on the same item'} (out of memory?)"
                ) from error
            if started:
                self._not_started += 1
            else:
                self.waiting.appendleft((item, lost + 1))
            return None, []
        return worker, [] if started else [result]


def _most(gpus: int) -> int:
    """Return how many workers with a CPU and ``gpus`` GPUs each fit on present and future nodes."""
    have = capacity()
    return min(have["CPU"], have["GPU"] // gpus) if gpus else have["CPU"]

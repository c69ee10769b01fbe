"""Live tensor memory and FLOPs of a dry run, recorded phase by phase."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)  # fmt: skip
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
META = torch.device("meta")
DEVICE = torch.ops.prim.device.default
"""What ``tensor.device`` asks of a tensor without data: half of all calls."""
FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
    aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        aten._scaled_dot_product_flash_attention_backward
    ],
}
"""PyTorch's own, and its flash attention's for the CPU, which has the same arguments."""


class Peak(NamedTuple):
    """Peak of live bytes."""

    alive: float
    gathered: float
    """Bytes of the peak that are weights gathered by sharding."""
    gradients: float
    """Bytes of gradients at the end of the segment."""


@dataclass
class Phase:
    """A pass of a network, or the work between two passes."""

    name: str
    peaks: list[Peak] = field(default_factory=list)
    """One peak for each segment: each ends with a block; the final one is the work after the last block."""
    flops: float = 0


class Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what runs inside, under a FakeTensorMode; storages are counted once, until nobody holds them. ``away``
    says how many bytes of them would not be on the device.

    A value that nobody can know is read as 1, a mask keeps everything.
    """

    def __init__(self, gradients: Callable[[], int], away: Callable[[], int] = lambda: 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.gradients, self.away = gradients, away
        self.phases = [Phase("building")]
        self.alive = self.gathered = 0
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._resized: set[int] = set()
        self._most = (0, 0)

    def open(self, name: str) -> None:
        """Begin another phase."""
        self.cut()
        self.phases.append(Phase(name))

    def cut(self) -> None:
        """Begin another segment of this phase."""
        alive, gathered = self._most
        self.phases[-1].peaks.append(Peak(alive - self.away(), gathered, self.gradients()))
        self._most = self.alive, self.gathered

    def work(self, flops: int) -> None:
        """Add operations without a known formula."""
        self.phases[-1].flops += flops

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its parts will come one by one
        if func is DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device
        named = dict(kwargs or {})
        if func is aten._to_copy.default and named.get("device") == META:
            del named["device"]  # a sum with a zero tangent takes the device of what a FakeTensor really is
        try:
            out = func(*args, **named)
        except DataDependentOutputException:
            return 1
        except DynamicOutputShapeException:
            out = args[0].clone()
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.work(formula(*args, **named, out_val=out))
        for value in tree_leaves(out):
            # on the meta device forward-mode AD asks for shapes
            if isinstance(value, Tensor) and not isinstance(value, DTensor) and _device(value) != META:
                self._hold(value.untyped_storage())
        return out

    def _hold(self, storage: Any) -> None:
        key = id(storage)
        if key in self._known:
            return
        self._known[key] = (weakref.ref(storage, lambda _: self._drop(key)), storage.nbytes())
        self._move(storage.nbytes(), key)

    def _drop(self, key: int) -> None:
        _, size = self._known.pop(key)
        self._move(-size, key)
        self._resized.discard(key)

    def _move(self, change: int, key: int) -> None:
        self.alive += change
        if key in self._resized:
            self.gathered += change
        if self.alive > self._most[0]:
            self._most = self.alive, self.gathered

    def note_resize(self, storage: Any) -> None:
        """``storage`` has another size now: that is how FSDP2 frees gathered weights and takes room for them again."""
        key = id(storage)
        if key not in self._known:
            return
        reference, before = self._known[key]
        self._known[key] = (reference, storage.nbytes())
        if key not in self._resized:
            self.gathered += before
            self._resized.add(key)
        self._move(storage.nbytes() - before, key)


def _device(value: Tensor) -> torch.device:
    return value.fake_device if isinstance(value, FakeTensor) else value.device


@contextmanager
def record_into(ledger: Ledger) -> Iterator[None]:
    """Let ``ledger`` count everything that runs inside."""
    original = torch.UntypedStorage.resize_

    def resize_(storage: Any, size: int) -> Any:
        found = original(storage, size)
        ledger.note_resize(storage)
        return found

    torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
    try:
        with ledger:
            yield
    finally:
        torch.UntypedStorage.resize_ = original  # type: ignore[method-assign]

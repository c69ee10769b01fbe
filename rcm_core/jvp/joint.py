"""The joint pass: a network's value with gradient and its tangent in one forward, also under FSDP2.

Inside a block, inputs and outputs are dual tensors. At its boundary, where sharding and checkpointing have their hooks,
they are a ``Dual`` of two plain tensors. The graph of a block is not stored: its backward recomputes the block without
tangents (activation checkpointing). The tangent has no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.checkpoint import get_device_states, set_device_states

from rcm_core.jvp.attention import flash_jvp


class Dual(NamedTuple):
    """A value and its tangent as two plain tensors; a tangent of None is zero."""

    primal: Tensor
    tangent: Tensor | None


def joint_jvp(
    fn: Callable[..., Tensor],
    primals: Sequence[Tensor],
    tangents: Sequence[Tensor | None],
    blocks: Sequence[nn.Module],
) -> tuple[Tensor, Tensor]:
    """Return ``fn(*primals)``, differentiable in the parameters, and its derivative along ``tangents``, a constant.

    ``blocks``: the modules that ``fn`` runs in sequence and that have most of its cost; with FSDP2, its units.
    Operators between them keep their graph.
    """
    with ExitStack() as stack:
        stack.enter_context(forward_ad.dual_level())
        stack.enter_context(flash_jvp())
        for block in blocks:
            stack.enter_context(_by_pairs(block))
        inputs = [p if t is None else _dual(Dual(p, t)) for p, t in zip(primals, tangents, strict=True)]
        value, tangent = _pair(fn(*inputs))
    return value, torch.zeros_like(value) if tangent is None else tangent.detach()


@contextmanager
def _by_pairs(block: nn.Module) -> Iterator[None]:
    """Let ``block`` take and return dual tensors while its hooks see a ``Dual`` of plain ones."""
    plain, own = block.forward, vars(block).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        return _run(plain, args, kwargs)

    before = block.register_forward_pre_hook(
        lambda _, args, kwargs: (_wrap_duals(args), _wrap_duals(kwargs)), prepend=True, with_kwargs=True
    )
    after = block.register_forward_hook(lambda _, __, out: _unwrap_duals(out))
    block.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own  # type: ignore[method-assign]
        before.remove()
        after.remove()


def _run(plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Run ``plain`` once for value and tangent without a graph; the backward of the value recomputes it."""
    replay = _Replay(plain, torch.get_rng_state(), get_device_states(args), _autocasts())
    with torch.no_grad():
        outputs, spec = _flat(_wrap_duals(plain(*_unwrap_duals(args), **_unwrap_duals(kwargs))))
    if not torch.is_grad_enabled():
        return tree_unflatten(outputs, spec)
    inputs, shape = tree_flatten(_primals((args, kwargs)))
    values = [x.primal if isinstance(x, Dual) else x for x in outputs]
    anchor = torch.empty(0, requires_grad=True)  # so that parameters get gradients even if no input needs one
    tied = _Replayed.apply(replay, shape, len(values), anchor, *values, *inputs)  # type: ignore[no-untyped-call]
    return tree_unflatten(
        [Dual(v, x.tangent) if isinstance(x, Dual) else v for v, x in zip(tied, outputs)], spec
    )


class _Replay(NamedTuple):
    """A block's forward with its original random numbers and autocast precision."""

    plain: Callable[..., Any]
    random: Tensor
    device_random: tuple[list[int], list[Tensor]]
    autocasts: list[tuple[str, torch.dtype]]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        devices, states = self.device_random
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(devices))
            for device, dtype in self.autocasts:
                stack.enter_context(torch.autocast(device, dtype))
            torch.set_rng_state(self.random)
            set_device_states(devices, states)
            return self.plain(*args, **kwargs)


def _autocasts() -> list[tuple[str, torch.dtype]]:
    return [(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]


class _Replayed(torch.autograd.Function):
    """Return precomputed outputs; backward recomputes the block with gradient to differentiate by its inputs.

    Parameters get their gradients at the same time, as in any backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        replay: _Replay,
        shape: Any,
        count: int,
        anchor: Tensor,  # noqa: ARG004 - it only makes the outputs require a gradient
        *tensors: Any,
    ) -> tuple[Any, ...]:
        outputs, inputs = tensors[:count], tensors[count:]
        ctx.replay, ctx.shape, ctx.count = replay, shape, count
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.places = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]
        ctx.save_for_backward(*[inputs[i] for i in ctx.places])
        ctx.set_materialize_grads(False)
        return tuple(x.view_as(x) if isinstance(x, Tensor) else x for x in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        inputs = list(ctx.others)
        for i, x in zip(ctx.places, ctx.saved_tensors):
            inputs[i] = x.detach().requires_grad_(x.requires_grad)
        args, kwargs = tree_unflatten(inputs, ctx.shape)
        with torch.enable_grad():
            outputs = tree_flatten(ctx.replay(*args, **kwargs))[0]
        known = [(out, g) for out, g in zip(outputs, gradients) if g is not None and out.requires_grad]
        if known:
            torch.autograd.backward([out for out, _ in known], [g for _, g in known])
        input_gradients = [x.grad if isinstance(x, Tensor) else None for x in inputs]
        return (None, None, None, None, *[None] * ctx.count, *input_gradients)


def _wrap_duals(tree: Any) -> Any:
    """Replace every dual tensor in ``tree`` by a ``Dual``."""
    return tree_map_only(Tensor, lambda x: pair if (pair := _pair(x)).tangent is not None else x, tree)


def _unwrap_duals(tree: Any) -> Any:
    """Replace every ``Dual`` in ``tree`` by a dual tensor."""
    return _map_duals(_dual, tree)


def _primals(tree: Any) -> Any:
    return _map_duals(lambda pair: pair.primal, tree)


def _map_duals(fn: Callable[[Dual], Any], tree: Any) -> Any:
    leaves, spec = _flat(tree)
    return tree_unflatten([fn(x) if isinstance(x, Dual) else x for x in leaves], spec)


def _flat(tree: Any) -> Any:
    """Flatten ``tree`` with ``Dual`` as a leaf; return the leaves and the tree's structure."""
    return tree_flatten(tree, is_leaf=lambda x: isinstance(x, Dual))


def _pair(x: Tensor) -> Dual:
    return Dual(*forward_ad.unpack_dual(x))  # type: ignore[no-untyped-call]


def _dual(pair: Dual) -> Tensor:
    dual: Tensor = forward_ad.make_dual(pair.primal, pair.tangent)  # type: ignore[no-untyped-call]
    return dual

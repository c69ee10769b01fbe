"""Context parallelism by Ulysses (Jacobs et al., arXiv 2309.14509) for unmodified diffusers modules.

Between the first block and the last layer every rank holds its share of a sample's tokens. In each attention over
tokens it holds all tokens for its share of the heads. Every rank has the whole text. All exchanges are linear: the
backward of one is its transpose, its tangent the same exchange. So gradients and tangents equal those of one rank.

Every rank computes the whole loss from the gathered output. The transposes sum over the ranks of a context-parallel
group, and data parallelism's mean over all ranks divides by their number: the result is the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rcm_core.errors import InputError
from rcm_core.jvp import Dual
from rcm_core.protocols import Tokens

HEADS, SEQUENCE = 1, 2
"""Dimensions of heads and tokens in queries, keys and values [B, heads, tokens, width]."""
Group = dist.ProcessGroup


class Ulysses(TorchFunctionMode):
    """Split a network's tokens over ``group`` as ``plan`` says; the function mode exchanges tokens for heads around
    attention.
    """

    def __init__(self, network: nn.Module, plan: Tokens, group: Group) -> None:
        """Register permanent hooks on ``network``."""
        super().__init__()
        self.plan, self.group, self.size, self.rank = plan, group, group.size(), group.rank()
        self.text = "none"
        self.local, self.length = 0, 0
        """Number of a sample's tokens on this rank, and of the text tokens that precede them in an attention."""
        entry = network.get_submodule(plan.entry)
        if plan.tokens_are_output_of_entry:
            entry.register_forward_hook(lambda _, __, out: self._split(out))
        else:
            entry.register_forward_pre_hook(self._enter, with_kwargs=True)
        if plan.rope is not None:
            network.get_submodule(plan.rope).register_forward_hook(
                lambda _, __, out: tuple(self._split_rope(rows) for rows in out)
            )
        network.get_submodule(plan.exit).register_forward_hook(lambda _, __, out: gather(out, self.group, 1))
        for name, module in network.named_modules():
            order = plan.attention.get(name.rsplit(".", 1)[-1])
            if order is not None:
                check_heads(module, self.size)
                module.register_forward_pre_hook(self._opener(order))
                module.register_forward_hook(lambda *_: self.__exit__(None, None, None), always_call=True)  # type: ignore[no-untyped-call]

    def _opener(self, order: str) -> Callable[..., None]:
        def before(module: nn.Module, args: Any) -> None:  # noqa: ARG001
            self.text = order
            self.__enter__()  # type: ignore[no-untyped-call]

        return before

    def _enter(self, module: nn.Module, args: Any, named: dict[str, Any]) -> Any:  # noqa: ARG002
        if "hidden_states" in named:
            return args, {**named, "hidden_states": self._split(named["hidden_states"])}
        return (self._split(args[0]), *args[1:]), named

    def _split(self, tokens: Any) -> Any:
        """Return this rank's share of ``tokens`` [B, tokens, width]; in the joint pass, of value and tangent."""
        if isinstance(tokens, Dual):
            tangent = None if tokens.tangent is None else self._split(tokens.tangent)
            return Dual(self._split(tokens.primal), tangent)
        count = tokens.shape[1]
        if count % self.size:
            raise InputError(
                f"a sample has {count} tokens, which train.parallel.context = {self.size} does not divide;"
                " change train.parallel.context or the sample shape"
            )
        self.local = count // self.size
        return tokens.narrow(1, self.rank * self.local, self.local)

    def _split_rope(self, rows: Tensor) -> Tensor:
        """Return the rotary rows of the text, which come first, and of this rank's tokens."""
        dim = self.plan.rope_dim
        text = rows.shape[dim] - self.size * self.local if self.plan.rope_covers_text else 0
        count = (rows.shape[dim] - text) // self.size
        mine = rows.narrow(dim, text + self.rank * count, count)
        return torch.cat([rows.narrow(dim, 0, text), mine], dim) if text else mine

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            return self._attend(func, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _attend(
        self, attention: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, **options: Any
    ) -> Tensor:
        if options.get("attn_mask") is not None:
            raise InputError(
                "attention over tokens has a mask, which context parallelism cannot split; set train.parallel.context"
                " to 1"
            )
        self.length = query.shape[SEQUENCE] - self.local if self.text != "none" else 0
        out = attention(*(self._by_heads(x) for x in (query, key, value)), **options)
        tokens, text = self._parts(out)
        return self._join(
            exchange(tokens, self.group, SEQUENCE, HEADS),
            None if text is None else gather(text, self.group, HEADS),
        )

    def _by_heads(self, x: Tensor) -> Tensor:
        """Return all tokens for this rank's heads, from this rank's tokens for all heads."""
        tokens, text = self._parts(x)
        mine = None if text is None else text.chunk(self.size, HEADS)[self.rank]
        return self._join(exchange(tokens, self.group, HEADS, SEQUENCE), mine)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Split ``x`` into the tokens of the sample and those of the text."""
        if not self.length:
            return x, None
        count = x.shape[SEQUENCE] - self.length
        if self.text == "behind":
            return x.narrow(SEQUENCE, 0, count), x.narrow(SEQUENCE, count, self.length)
        return x.narrow(SEQUENCE, self.length, count), x.narrow(SEQUENCE, 0, self.length)

    def _join(self, tokens: Tensor, text: Tensor | None) -> Tensor:
        if text is None:
            return tokens
        return torch.cat([tokens, text] if self.text == "behind" else [text, tokens], SEQUENCE)


def check_heads(module: nn.Module, size: int) -> None:
    """Raise InputError unless ``size`` ranks divide the heads of an attention."""
    heads = getattr(module, "heads", size)
    if heads % size:
        raise InputError(
            f"train.parallel.context = {size} does not divide the {heads} heads of the network; choose a divisor"
        )


def exchange(x: Tensor, group: Group, scatter: int, collect: int) -> Tensor:
    """All-to-all: send part i of dimension ``scatter`` to rank i and concatenate received parts along ``collect``."""
    return _Exchange.apply(x, group, scatter, collect)  # type: ignore[no-any-return, no-untyped-call]


def gather(x: Tensor, group: Group, dim: int) -> Tensor:
    """All-gather: concatenate every rank's ``x`` along ``dim``."""
    return _Gather.apply(x, group, dim)  # type: ignore[no-any-return, no-untyped-call]


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, scatter: int, collect: int) -> Tensor:
        ctx.how = group, scatter, collect
        return _all_to_all(x, *ctx.how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        group, scatter, collect = ctx.how
        return _all_to_all(gradient, group, collect, scatter), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _all_to_all(tangent, *ctx.how)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.how = group, dim
        return _all_gather(x, *ctx.how)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        group, dim = ctx.how
        parts = gradient.chunk(group.size(), dim)
        mine = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        dist.reduce_scatter_tensor(mine, torch.cat(parts), group=group)
        return mine, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _all_gather(tangent, *ctx.how)


@torch.no_grad()
def _all_to_all(x: Tensor, group: Group, scatter: int, collect: int) -> Tensor:
    sent = torch.stack([part.contiguous() for part in x.chunk(group.size(), scatter)])
    came = torch.empty_like(sent)
    dist.all_to_all_single(came, sent, group=group)
    return torch.cat(list(came), collect)


@torch.no_grad()
def _all_gather(x: Tensor, group: Group, dim: int) -> Tensor:
    came = x.new_empty(group.size() * len(x), *x.shape[1:])
    dist.all_gather_into_tensor(came, x.contiguous(), group=group)
    return torch.cat(came.chunk(group.size()), dim)

"""Wrapper of any family's network as the TrigFlow velocity ``F(x, t, condition)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcm_core.errors import InputError
from rcm_core.networks.embeddings import Embedding, LogVariance
from rcm_core.networks.weights import Target, loading
from rcm_core.protocols import EMBEDDED, Condition, Family, Parameterisation

GUIDANCE_SCALE = 0.1
"""Factor on the guidance scale before its embedding (SANA-Sprint, arXiv 2503.09641, section 3.2)."""
NETWORK, EXTRAS = "network.", "extras."


class Denoiser(nn.Module):
    """Wrap ``network`` as a map from states and angles to velocities [B, C, T, H, W], all float32.

    ``extras``: protocols.MethodRequirements.student_modules. Embedded inputs are read from the condition by name; an
    absent one is 0. InputError if the family has no time embedding to add them to. ``compute``: dtype of the network's
    weights if it differs from the states'; inputs are cast to it, except numbers [B] (times, guidance scales).
    """

    def __init__(
        self,
        network: nn.Module,
        family: Family,
        parameterisation: Parameterisation,
        extras: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.network = network
        self.family = family
        self.parameterisation = parameterisation
        self.compute: torch.dtype | None = None
        self.extras = nn.ModuleDict()
        for name in sorted(extras):
            self.extras[name] = (
                Embedding(self._time_layer().out_features) if name in EMBEDDED else LogVariance()
            )

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return ``F`` at state ``x`` [B, ...] and angle ``t`` [B] (E7, E8)."""
        inputs, time = self.parameterisation.to_network(x, t)
        if self.compute is not None:
            inputs = inputs.to(self.compute)
            condition = {
                name: value if value.ndim == 1 else value.to(self.compute)
                for name, value in condition.items()
            }
        with self._embedding(condition):
            output = self.family.call(self.network, inputs, time, condition)
        return self.parameterisation.velocity(x, t, output if self.compute is None else output.to(x.dtype))

    def features(self, x: Tensor, t: Tensor, condition: Condition, blocks: Sequence[int]) -> list[Tensor]:
        """Return the output tokens ``[B, tokens, width]`` of the blocks with these indices, in their order."""
        outputs: dict[int, Tensor] = {}

        def keep(index: int) -> Any:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001
                # dual-stream blocks return (text, image)
                outputs[index] = output if isinstance(output, Tensor) else output[-1]

            return hook

        every = self.blocks()
        with ExitStack() as stack:
            for index in blocks:
                stack.callback(every[index].register_forward_hook(keep(index)).remove)
            self(x, t, condition)
        return [outputs[index].to(x.dtype) for index in blocks]

    def wrap_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return the forward that backward recomputes under activation checkpointing (LoRA overrides this)."""
        return forward

    def log_variance(self, t: Tensor) -> Tensor:
        """Return the output ``[B]`` of the adaptive weighting's head; needs the extra "log_variance"."""
        return self.extras["log_variance"](t)  # type: ignore[no-any-return]

    def blocks(self) -> list[nn.Module]:
        """Return the family's blocks in order, whether FSDP has changed their class or not."""
        names = set(self.family.blocks)
        return [m for m in self.network.modules() if names & {c.__name__ for c in type(m).__mro__}]

    def check_blocks(self, blocks: Sequence[int]) -> int:
        """Return the width of the output tokens of ``blocks``; InputError if the network lacks one of them."""
        count = len(self.blocks())
        if any(index >= count for index in blocks):
            raise InputError(
                f"the discriminator asks for blocks {list(blocks)}, but the network has {count} (from 0); change the"
                " method's blocks"
            )
        width: int = self.network.get_submodule(self.family.last_layer).in_features  # type: ignore[assignment]
        return width

    def plain(self, weights: Mapping[str, Tensor], guidance: float | None) -> dict[str, Tensor]:
        """Return the network's weights from ``weights`` (this module's parameters, unsharded, on the CPU), with the
        embedded ``guidance`` scale folded into the time embedding's bias (E49).
        """
        own = {name.removeprefix(NETWORK): w for name, w in weights.items() if name.startswith(NETWORK)}
        if guidance is not None:
            bias = f"{self.family.time_layer}.bias"
            own[bias] = own[bias] + embedded_guidance(weights, guidance, self._time_layer().out_features)
        return own

    def _time_layer(self) -> nn.Linear:
        if self.family.time_layer is None:
            raise InputError(
                "the method embeds a guidance scale or a second time, but this family has no time embedding; set"
                " method.guidance to null, or choose another method"
            )
        layer = self.network.get_submodule(self.family.time_layer)
        assert isinstance(layer, nn.Linear), f"{self.family.time_layer} must be a linear layer"
        return layer

    @contextmanager
    def _embedding(self, condition: Condition) -> Iterator[None]:
        """Add the embedded inputs to the time embedding within the block."""
        embedded = [(name, condition[name]) for name in EMBEDDED if name in self.extras and name in condition]
        if not embedded:
            yield
            return

        def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:  # noqa: ARG001
            for name, value in embedded:
                scaled = GUIDANCE_SCALE * value if name == "guidance" else value
                output = output + self.extras[name](scaled).to(output.dtype)
            return output

        handle = self._time_layer().register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


@torch.no_grad()
def embedded_guidance(weights: Mapping[str, Tensor], guidance: float, width: int) -> Tensor:
    """Return the contribution [width] of the extra "guidance" in ``weights`` to the time embedding at this scale."""
    embedding, prefix = Embedding(width), f"{EXTRAS}guidance."
    embedding.load_state_dict({n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)})
    added: Tensor = embedding(torch.tensor([GUIDANCE_SCALE * guidance]))[0]
    return added


def lower(denoiser: Denoiser) -> Denoiser:
    """Convert the weights of ``denoiser`` to bfloat16 for sampling, as training computes in it. The time embedding and
    buffers (position tables) stay float32.
    """
    network = denoiser.network
    time = network.get_submodule(denoiser.family.time_embedder)
    exact = {id(parameter) for parameter in time.parameters()}
    for parameter in network.parameters():
        if id(parameter) not in exact:
            parameter.data = parameter.data.to(torch.bfloat16)
    time.register_forward_pre_hook(lambda _, inputs: tuple(value.float() for value in inputs))
    time.register_forward_hook(lambda _, __, output: output.to(torch.bfloat16))
    denoiser.compute = torch.bfloat16
    return denoiser


def load_denoiser(
    folder: Path, family: Family, extras: Sequence[str] = (), device: torch.device | None = None
) -> Denoiser:
    """Load the denoiser of the pipeline in ``folder`` onto ``device`` (None: the CPU)."""
    device = device or torch.device("cpu")
    with loading(Target(device)):
        network = family.load_network(folder)
    return Denoiser(network, family, family.parameterisation(folder), extras).to(device)

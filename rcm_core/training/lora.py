"""LoRA distillation: every role is the frozen teacher with its own low-rank matrices (Hu et al., arXiv 2106.09685).

    W_role = W_teacher + (alpha / rank) B_role A_role        in linear layers of the family's blocks

Teacher, student and fake score are one network in memory. B is zero at first, so every role begins as the teacher.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from rcm_core.config.sections import LoraSection
from rcm_core.errors import InputError
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.networks.weights import LORA
from rcm_core.protocols import Condition, Family
from rcm_core.rng import address
from rcm_core.storage.files import atomic

PARTS = ("lora_A", "lora_B")


class Shared(Denoiser):
    """The network that all roles share; ``role`` names the active adapter, None: the teacher's own weights."""

    role: str | None = None

    def adapt(self, section: LoraSection, roles: Sequence[str], seed: int) -> None:
        """Add one adapter for each of ``roles``, all with the same initial values; freeze everything else."""
        from peft import LoraConfig, inject_adapter_in_model

        targets = self.targets(section.targets)
        for role in roles:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.filterwarnings(
                    "ignore", "Already found a `peft_config`", UserWarning
                )  # several adapters are intended
                torch.manual_seed(address(seed, "lora"))
                config = LoraConfig(r=section.rank, lora_alpha=section.alpha, target_modules=targets)
                inject_adapter_in_model(config, self.network, adapter_name=role)
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(any(f".{part}." in name for part in PARTS))
        self._act(None)

    def targets(self, endings: Sequence[str] | None) -> list[str]:
        """Return the names of the blocks' linear layers that end in one of ``endings``; None: all of them.

        InputError if an ending matches no layer.
        """
        inside = {id(m) for block in self.blocks() for m in block.modules() if isinstance(m, nn.Linear)}
        linear = [name for name, module in self.network.named_modules() if id(module) in inside]
        if endings is None:
            return linear
        for ending in endings:
            if not any(f".{name}".endswith(f".{ending}") for name in linear):
                known = sorted({name.split(".", 2)[-1] for name in linear})
                raise InputError(
                    f"train.lora.targets has {ending!r}, but no linear layer of the blocks has a name with that ending;"
                    f" choose from {', '.join(known)}"
                )
        return [name for name in linear if any(f".{name}".endswith(f".{ending}") for ending in endings)]

    @contextmanager
    def acting(self, role: str | None) -> Iterator[None]:
        """Activate the adapter of ``role`` within the block."""
        before = self.role
        self._act(role)
        try:
            yield
        finally:
            self._act(before)

    def wrap_forward(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``forward`` bound to the active role: backward may recompute it while another role is active."""
        return partial(self._as, self.role, forward)

    def _as(self, role: str | None, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.acting(role):
            return forward(*args, **kwargs)

    def _act(self, role: str | None) -> None:
        from peft.tuners.lora import LoraLayer

        self.role = role
        for module in self.network.modules():
            if isinstance(module, LoraLayer):
                # peft's own switches also change requires_grad, which the optimisers rely on here
                module._active_adapter = [role or ""]
                module._disable_adapters = role is None


class Adapted(Denoiser):
    """One role: its matrices (and extras) are its parameters; ``shared`` owns the network."""

    shared: Shared
    role: str | None
    folder: Path

    def __init__(self, shared: Shared, role: str | None, folder: Path, extras: Sequence[str] = ()) -> None:
        """Wrap ``shared`` for ``role``; ``folder`` is the teacher's pipeline."""
        super().__init__(nn.Identity(), shared.family, shared.parameterisation, extras)
        del self.network  # a registered network would be trained, saved and averaged with the role
        vars(self).update(network=shared.network, shared=shared, role=role, folder=folder)
        self.lora = nn.ParameterDict(self._matrices())

    def forward(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return ``F`` of this role (E7, E8)."""
        with self.shared.acting(self.role):
            velocity: Tensor = self.shared(x, t, condition)
        return velocity

    def _matrices(self) -> dict[str, nn.Parameter]:
        """Return the matrices by layer and part; names use slashes because parameter names must not have dots."""
        matrices = {}
        for name, parameter in self.network.named_parameters():
            layer, _, rest = name.partition(".lora_")
            if rest.split(".")[1:2] == [self.role]:
                matrices[f"{layer}.lora_{rest[0]}".replace(".", "/")] = parameter
        return matrices

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the matrices in ``weights`` as a LoRA file that a diffusers pipeline of the teacher loads."""
        named = {}
        for layer, (down, up) in self._scale(weights).items():
            named[f"transformer.{layer}.lora_A.weight"] = down.contiguous()
            named[f"transformer.{layer}.lora_B.weight"] = up.contiguous()
        with atomic(folder / LORA) as temporary:
            save_file(named, temporary, metadata={"format": "pt"})

    def _scale(self, weights: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return A and (alpha / rank) B of every layer, float32."""
        from peft.tuners.lora import LoraLayer

        scaled = {}
        for name, module in self.network.named_modules():
            key = f"lora.{name.replace('.', '/')}"
            if isinstance(module, LoraLayer) and f"{key}/lora_A" in weights:
                down, up = (weights[f"{key}/{part}"].float() for part in PARTS)
                scaled[name] = down, module.scaling[str(self.role)] * up
        return scaled


def load_shared(
    folder: Path, family: Family, section: LoraSection, roles: Sequence[str], seed: int
) -> Shared:
    """Load the network of the pipeline in ``folder`` and add adapters for ``roles``."""
    plain = load_denoiser(folder, family)
    shared = Shared(plain.network, family, plain.parameterisation)
    shared.adapt(section, roles, seed)
    return shared

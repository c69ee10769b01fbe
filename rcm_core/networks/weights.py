"""Memory-mapped loading of safetensors files directly into a network, on its device and in its compute dtype."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rcm_core.storage.files import atomic_folder, write_json

LORA = "pytorch_lora_weights.safetensors"
"""File name that diffusers' ``load_lora_weights`` expects."""
CPU = torch.device("cpu")
CHUNK = 2**29
"""Maximum bytes of a file to map at a time while copying weights: mapped pages count as used memory."""


@dataclass(frozen=True)
class Target:
    """Options for loading networks."""

    device: torch.device = CPU
    dtype: torch.dtype = torch.float32
    """Dtype of parameters; buffers are float32."""
    exact: str | None = None
    """Name of a submodule whose parameters stay float32."""
    lora: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Low-rank matrices (down, up) to add to the weights, by layer name."""
    mapped: bool = False
    """If True, weights are views of the files in the files' dtypes, and all other options are ignored."""
    send: Callable[[str, Tensor], None] | None = None
    """Callback that gets every weight instead of the network, as a view of its file that is valid during the call."""

    def place(self, name: str, value: Tensor, parameter: bool) -> Tensor:
        """Copy the tensor ``name`` with the device and dtype of these options, and add its LoRA."""
        if self.mapped:
            return value
        layer, own = name.removesuffix(".weight"), False
        if layer in self.lora:
            down, up = self.lora[layer]
            value, own = torch.addmm(value.float(), up, down), True
        exact = not parameter or (self.exact is not None and name.startswith(f"{self.exact}."))
        dtype = torch.float32 if exact else self.dtype
        return value.to(self.device, dtype if value.is_floating_point() else value.dtype, copy=not own)


_target: ContextVar[Target] = ContextVar("target", default=Target())  # noqa: B039 - it is frozen


@contextmanager
def loading(target: Target) -> Iterator[None]:
    """Make a family's ``load_network`` use the options ``target`` within the block.

    A family that does not use ``folder.load_transformer`` ignores them and loads float32 on the CPU.
    """
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


@torch.no_grad()
def fill(network: nn.Module, files: Sequence[Path]) -> nn.Module:
    """Fill ``network``, whose parameters are on the meta device, from ``files``; the names must match exactly."""
    target = _target.get()
    for name, value in _tensors(files, target.mapped):
        if target.send is not None:
            target.send(name, value)
            continue
        place, _, leaf = name.rpartition(".")
        owner = network.get_submodule(place)
        old = owner._parameters.get(leaf)
        new = target.place(name, value, old is not None)
        if old is None:
            owner._buffers[leaf] = new
        else:
            owner._parameters[leaf] = nn.Parameter(new, requires_grad=old.requires_grad)
    for owner in network.modules() if not (target.mapped or target.send) else ():
        owner._buffers = {k: b if b is None else b.to(target.device) for k, b in owner._buffers.items()}
    return network


def is_lora(folder: Path) -> bool:
    """Return whether the network in ``folder`` is stored as a LoRA of its teacher's weights."""
    return (folder / LORA).is_file() and not any(folder.glob("diffusion_pytorch_model*"))


def read_lora(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Read the low-rank matrices (down, up) of a diffusers LoRA file by layer name, float32."""
    tensors = load_file(path)
    layers = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith(".lora_A.weight")}
    return {
        layer.removeprefix("transformer."): (
            tensors[f"{layer}.lora_A.weight"].float(),
            tensors[f"{layer}.lora_B.weight"].float(),
        )
        for layer in sorted(layers)
    }


def _tensors(files: Sequence[Path], mapped: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of ``files`` as a view of its mapped file; remap every ``CHUNK`` bytes unless ``mapped``."""
    for path in files:
        with safe_open(path, "pt") as stream:
            names = list(stream.keys())
        while names:
            taken = 0
            with safe_open(path, "pt") as stream:
                while names and (mapped or taken < CHUNK):
                    name = names.pop(0)
                    value = stream.get_tensor(name)
                    taken += value.nbytes
                    yield name, value
                    del value


def written_as(
    weights: Mapping[str, Tensor], parameters: Collection[str], precision: str, exact: str
) -> dict[str, Tensor]:
    """Convert ``weights`` to the dtypes of a file of ``precision``: ``parameters`` in bfloat16, except ``exact``.

    Sampling in that precision rounds the same weights in the same way.
    """
    low = {n for n in parameters if precision == "bfloat16" and not n.startswith(f"{exact}.")}
    return {name: value.to(torch.bfloat16) if name in low else value for name, value in weights.items()}


def write_network(folder: Path, network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write ``folder`` as a diffusers model folder: config.json and safetensors with ``weights``."""
    names = set(network.state_dict())
    if names != set(weights):
        raise ValueError(
            f"weights of {folder} differ from the network's in {sorted(names ^ set(weights))[:3]}; pass all of them"
        )
    with atomic_folder(folder) as temporary:
        network.save_config(temporary)  # type: ignore[operator]
        config = json.loads((temporary / "config.json").read_text())
        config.pop("_name_or_path", None)  # the local source path is not part of the network
        write_json(temporary / "config.json", config)
        save_file(dict(weights), temporary / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})

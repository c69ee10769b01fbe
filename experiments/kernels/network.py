"""A whole network, Wan2.1-1.3B with random weights at 480p x 81 frames: forward, tangent pass, joint pass, sCM step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from rcm_kernels.plain import fastest_attention
from torch import Tensor, nn

from experiments.kernels.timing import Cost, measure
from rcm_core.jvp import flash_jvp, joint_jvp, jvp


class Size(NamedTuple):
    """Sizes of a WanTransformer3DModel and its latents."""

    heads: int
    head_dim: int
    layers: int
    ffn: int
    text: int
    frames: int
    height: int
    width: int


WAN_1_3B = Size(12, 128, 30, 8960, 4096, 21, 60, 104)
"""Wan2.1-T2V-1.3B's config.json; 81 frames of 480 x 832 are 21 x 60 x 104 latents, 32,760 tokens."""
SMOKE = Size(2, 16, 2, 64, 32, 1, 4, 4)
TEXT_LENGTH = 512


class Setting(NamedTuple):
    """A network with a state and the state's tangent."""

    network: nn.Module
    blocks: list[nn.Module]
    inputs: tuple[Tensor, Tensor]
    along: tuple[Tensor, Tensor]
    text: Tensor

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        found: Tensor = self.network(
            hidden_states=x, timestep=t, encoder_hidden_states=self.text, return_dict=False
        )[0]
        return found


def setting(size: Size, device: torch.device) -> Setting:
    """Create the network in bfloat16 with activation checkpointing, as in training."""
    from diffusers import WanTransformer3DModel

    with torch.device(device):
        network = WanTransformer3DModel(
            num_attention_heads=size.heads, attention_head_dim=size.head_dim, num_layers=size.layers,
            ffn_dim=size.ffn, text_dim=size.text,
        )  # fmt: skip
    for name, parameter in network.named_parameters():
        if not any(part in name for part in network._keep_in_fp32_modules):
            parameter.data = parameter.data.to(torch.bfloat16)
    network.enable_gradient_checkpointing()
    rng = torch.Generator(device=device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, device=device, dtype=torch.bfloat16)

    latents = (1, 16, size.frames, size.height, size.width)
    inputs = draw(*latents), torch.tensor([500.0], device=device)
    along = draw(*latents), torch.tensor([1.0], device=device)
    return Setting(network, list(network.blocks), inputs, along, draw(1, TEXT_LENGTH, size.text))


def costs(size: Size, device: torch.device) -> dict[str, Cost]:
    """Measure time and peak memory of each pass; only passes with a tangent do not use plain attention."""
    made = setting(size, device)
    optimiser = torch.optim.AdamW(made.network.parameters(), lr=0.0, fused=True)
    weights = torch.randn_like(made.inputs[0])

    def forward() -> Tensor:
        with torch.no_grad():
            return made(*made.inputs)

    def tangent() -> Tensor:
        with torch.no_grad(), flash_jvp():
            return jvp(made, made.inputs, made.along)[1]

    def train(value: Tensor) -> None:
        (value * weights).sum().backward()

    def two_passes() -> None:
        tangent()
        made.network.enable_gradient_checkpointing()
        train(made(*made.inputs))

    def joint() -> None:
        made.network.disable_gradient_checkpointing()  # the joint pass has its own checkpointing
        train(joint_jvp(made, made.inputs, made.along, made.blocks)[0])

    def step(student: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            forward(), forward()  # the guided teacher
            student()
            optimiser.step()
            optimiser.zero_grad()

        return call

    made.network.train()
    calls: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "tangent pass": tangent,
        "tangent pass, then forward and backward": two_passes,
        "joint pass and backward": joint,
        "sCM step in two passes": step(two_passes),
        "sCM step with the joint pass": step(joint),
    }
    found = {}
    for name, call in calls.items():
        with fastest_attention():
            found[name] = measure(call, device)
        optimiser.zero_grad()
    return found


def breakdown(size: Size, device: torch.device, rows: int = 12) -> dict[str, float]:
    """Return milliseconds of device time by kernel in a tangent pass, the largest first."""
    made = setting(size, device)
    kind = torch.profiler.ProfilerActivity
    activities = [kind.CUDA] if device.type == "cuda" else [kind.CPU]
    with torch.no_grad(), flash_jvp():
        jvp(made, made.inputs, made.along)
        with torch.profiler.profile(activities=activities) as seen:
            jvp(made, made.inputs, made.along)

    def microseconds_of(event: Any) -> float:
        total = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        return float(total) / 1000

    ordered = sorted(seen.key_averages(), key=microseconds_of, reverse=True)
    return {event.key[:100]: microseconds_of(event) for event in ordered[:rows]}

"""Checks that a teacher's network and VAE take states of ``teacher.shape``, on the meta device (no memory)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rcm_core.errors import InputError, named_line
from rcm_core.pipelines.folder import FAILURES, meta_network, read_part
from rcm_core.pipelines.vae import pixel_shape
from rcm_core.protocols import Family

MOST_TOKENS = 2**20
"""Most tokens of one state: 14 times those of 81 frames of 720 x 1280 in Wan2.1. Attention over more takes too long."""
VAES = ("AutoencoderKLWan", "AutoencoderKL", "AutoencoderDC", "PixelSpace")
STATISTICS = ("latents_mean", "latents_std")
"""Keys of a video VAE's configuration with a number for each channel."""
MOST_PIXELS = 2**31
"""Most values of one decoded sample: 8 GiB in float32."""


def check_shape(family: Family, config: Mapping[str, Any], shape: Sequence[int], where: str) -> None:
    """Raise InputError unless the network of ``config`` maps states of ``shape`` [C, T, H, W] to such states.

    Runs the network once on the meta device. Refuses video-to-world networks; channels, frames and sizes that the
    network does not take; and states of more than ``MOST_TOKENS`` tokens.
    """
    said = f"teacher.shape is {list(shape)}, but the network of {where}"
    network = meta_network(family.network_class, config).eval()
    refuse_frames(family, config, where)
    _, condition = family.example(config, 1, torch.Generator().manual_seed(0))
    tokens = _count_tokens(family, network)
    try:
        with torch.no_grad(), torch.device("meta"):
            x, given = torch.empty(1, *shape), {k: v.to("meta") for k, v in condition.items()}
            output = family.call(network, x, torch.empty(1), given)
    except FAILURES as error:
        raise InputError(
            f"{said} does not take such states ({named_line(error)}); set teacher.shape to the channels, frames, height"
            " and width of its latents"
        ) from error
    if output.shape != x.shape:
        what = (
            "makes images, which have one frame"
            if shape[1] > 1 and output.shape[2] == 1
            else "cuts them to patches"
        )
        raise InputError(
            f"{said} returns {list(output.shape[1:])}: it {what}; set teacher.shape to a shape that it keeps"
        )
    if max(tokens, default=0) > MOST_TOKENS:
        raise InputError(
            f"{said} makes {max(tokens):,} tokens of it; expected at most {MOST_TOKENS:,}: choose fewer frames, or a"
            " smaller height and width"
        )


def check_teacher_shape(family: Family, folder: Path, shape: Sequence[int], where: str) -> None:
    """Do ``check_shape`` for the network in the pipeline ``folder``, then check that its VAE decodes ``shape`` to the
    pixels that its configuration implies. InputError otherwise. VAEs of unknown classes are not checked.
    """
    check_shape(family, read_part(folder, "transformer/config.json"), shape, where)
    config = read_part(folder, "vae/config.json")
    name = config.get("_class_name")
    if name not in VAES:
        return
    said = f"teacher.shape is {list(shape)}, but the VAE of {where}"
    expected = list(pixel_shape(folder, (shape[0], shape[1], shape[2], shape[3])))
    if prod(expected) > MOST_PIXELS:
        raise InputError(
            f"{said} makes {prod(expected):,} values of pixels of it; expected at most {MOST_PIXELS:,}: choose fewer"
            " frames, or a smaller height and width"
        )
    channels = config.get("z_dim", config.get("latent_channels"))
    if channels not in (None, shape[0]):
        raise InputError(f"{said} has {channels} latent channels; set teacher.shape to [{channels}, ...]")
    if name != "PixelSpace" and (found := _decoded_shape(name, config, shape, said)) != expected:
        raise InputError(
            f"{said} makes pixels of {found}, expected {expected} by its configuration; correct vae/config.json"
        )


def _decoded_shape(name: str, config: Mapping[str, Any], shape: Sequence[int], said: str) -> list[int]:
    """Return channels, frames, height and width of the pixels that the VAE decodes from latents of ``shape``."""
    import diffusers

    video = name == "AutoencoderKLWan"
    try:
        with torch.no_grad(), torch.device("meta"):
            vae = getattr(diffusers, name).from_config(dict(config)).eval()
            if video:
                _ = [torch.empty(shape[0]) + torch.empty(len(vae.config[key])) for key in STATISTICS]
            latents = torch.empty(1, *(shape if video else (shape[0], *shape[2:])))
            pixels: Tensor = vae.decode(latents, return_dict=False)[0]
    except FAILURES as error:
        raise InputError(
            f"{said} does not decode it ({named_line(error)}); set teacher.shape to what the pipeline samples"
        ) from error
    return [*pixels.shape[1:]] if video else [pixels.shape[1], 1, *pixels.shape[2:]]


def _count_tokens(family: Family, network: nn.Module) -> list[int]:
    """Return a list that a run of ``network`` fills with the numbers of tokens that enter its blocks."""
    counts: list[int] = []

    def look(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:  # noqa: ARG001
        states = [v for v in (*inputs, *named.values()) if isinstance(v, Tensor) and v.ndim == 3]
        counts.extend(state.shape[1] for state in states)

    for module in network.modules():
        if type(module).__name__ in family.blocks:
            module.register_forward_pre_hook(look, with_kwargs=True)
    return counts


def refuse_frames(family: Family, config: Mapping[str, Any], where: str) -> None:
    """Raise InputError if the network is video-to-world: the stages pass a teacher prompts alone."""
    _, condition = family.example(config, 1, torch.Generator().manual_seed(0))
    if "frames" in condition:
        raise InputError(
            f"the teacher at {where} is a video-to-world network, which continues given frames, but the stages give a"
            " teacher prompts alone; use one that needs no frames (rcm check-model and rcm convert support both)"
        )

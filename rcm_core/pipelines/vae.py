"""Encoding and decoding with each VAE's own normalisation, for states [B, C, T, H, W]."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.pipelines.folder import Layout, read_part, vae_name
from rcm_core.protocols import Condition


def pixel_shape(folder: Path, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return channels, frames, height and width of the pixels whose latents have ``shape`` [C, T, H, W] in the pipeline
    ``folder``; reads only the VAE's configuration. InputError for a VAE of an unknown class.
    """
    config = read_part(folder, "vae/config.json")
    channels, frames, height, width = shape
    time, space = 1, 1
    match config.get("_class_name"):
        case "PixelSpace":
            return channels, frames, height, width
        case "AutoencoderKLWan":  # older files have no such keys; the defaults apply
            time, space = config.get("scale_factor_temporal", 4), config.get("scale_factor_spatial", 8)
        case "AutoencoderKL":
            space = 2 ** (len(config["block_out_channels"]) - 1)
        case "AutoencoderDC":
            space = 2 ** (len(config["encoder_block_out_channels"]) - 1)
        case other:
            raise InputError(
                f"the compression factor of {folder}/vae (class {other}) is unknown, so images and videos cannot be"
                " encoded; import latents (.tar) instead"
            )
    return 3, time * (frames - 1) + 1, space * height, space * width


class Latents:
    """Base class of codecs: loads each network at its first use; results are on the CPU."""

    readers: tuple[str, ...] = ()
    """Names of the cached properties that hold the text networks."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        self.layout, self.folder = layout, folder
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> Self:
        """Put the networks on ``device`` from now on; those that were loaded elsewhere are loaded again."""
        if device != self.device:
            for name in ("vae", *self.readers):
                vars(self).pop(name, None)
        self.device = device
        return self

    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Return the conditions of ``texts`` as they are; see protocols.Codec."""
        raise NotImplementedError

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Return the conditions of ``prompts``: ``encode_text``, unless the family's pipeline adds a prefix."""
        return self.encode_text(prompts)

    @cached_property
    def vae(self) -> Any:
        """VAE of the pipeline in ``folder``."""
        import diffusers

        from rcm_core.pixels import PixelSpace

        kind = PixelSpace if self.in_pixels else getattr(diffusers, vae_name(self.layout, self.folder))
        return kind.from_pretrained(self.folder / "vae", local_files_only=True).eval().to(self.device)

    @cached_property
    def in_pixels(self) -> bool:
        """True if latents are pixels."""
        return vae_name(self.layout, self.folder) == "PixelSpace"


class VideoLatents(Latents):
    """An AutoencoderKLWan, whose latents have a mean and a standard deviation per channel; or PixelSpace."""

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the latents of pixels in [-1, 1], [B, C, T, H, W]: the posterior's mode, normalised."""
        if self.in_pixels:
            return pixels
        mean, std = self._statistics()
        latents: Tensor = (self.vae.encode(pixels.to(self.device)).latent_dist.mode() - mean) / std
        return latents.cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels in [0, 1], [B, C, T, H, W]."""
        if self.in_pixels:
            return ((latents + 1) / 2).clamp(0, 1)  # without PixelSpace's enlargement, which is for viewing
        mean, std = self._statistics()
        pixels: Tensor = self.vae.decode(latents.to(self.device) * std + mean, return_dict=False)[0]
        return ((pixels + 1) / 2).clamp(0, 1).cpu()

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's latents, per channel."""
        values = (self.vae.config.latents_mean, self.vae.config.latents_std)
        mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1, 1) for v in values)
        return mean, std


class ImageLatents(Latents):
    """An AutoencoderKL or AutoencoderDC, which have one scale (and shift) for all channels; T is 1."""

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Return the normalised latents of pixels in [-1, 1], [B, C, 1, H, W]: the mode if there is a posterior."""
        scale, shift = self._statistics()
        encoded = self.vae.encode(pixels[:, :, 0].to(self.device))
        latents: Tensor = encoded.latent if hasattr(encoded, "latent") else encoded.latent_dist.mode()
        return ((latents - shift) * scale)[:, :, None].cpu()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels in [0, 1], [B, C, 1, H, W]."""
        scale, shift = self._statistics()
        state = latents[:, :, 0].to(self.device) / scale + shift
        pixels: Tensor = self.vae.decode(state, return_dict=False)[0]
        return ((pixels + 1) / 2).clamp(0, 1)[:, :, None].cpu()

    def _statistics(self) -> tuple[float, float]:
        """Return scale and shift of the VAE's latents."""
        config = self.vae.config
        return float(config.scaling_factor), float(config.get("shift_factor") or 0.0)

"""Pixels to latents and back: each VAE's own scale, behind one shape [B, C, T, H, W]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rcm_core.layout import Layout, vae_name
from rcm_core.pixels import PixelSpace


class VideoLatents:
    """An AutoencoderKLWan, whose latents have a mean and a deviation per channel; or pixels themselves."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        from diffusers import AutoencoderKLWan

        kind = PixelSpace if vae_name(layout, folder) == "PixelSpace" else AutoencoderKLWan
        self.vae = kind.from_pretrained(folder / "vae", local_files_only=True).eval()

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pixels in [-1, 1], [B, C, T, H, W]: the posterior's mode, normalised."""
        if isinstance(self.vae, PixelSpace):
            return pixels
        mean, std = self._statistics()
        latents: Tensor = (self.vae.encode(pixels).latent_dist.mode() - mean) / std
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, C, T, H, W]."""
        if isinstance(self.vae, PixelSpace):
            return ((latents + 1) / 2).clamp(0, 1)  # without the enlargement that is for people's eyes
        mean, std = self._statistics()
        pixels: Tensor = self.vae.decode(latents * std + mean, return_dict=False)[0]
        return ((pixels + 1) / 2).clamp(0, 1)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the VAE's latents, per channel."""
        values = (self.vae.config.latents_mean, self.vae.config.latents_std)
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in values)
        return mean, std


class ImageLatents:
    """An AutoencoderKL or AutoencoderDC, which have one scale (and shift) for all channels; T is 1."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        import diffusers

        kind: Any = getattr(diffusers, vae_name(layout, folder))
        self.vae = kind.from_pretrained(folder / "vae", local_files_only=True).eval()
        self.scale = float(self.vae.config.scaling_factor)
        self.shift = float(self.vae.config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pixels in [-1, 1], [B, C, 1, H, W]: the posterior's mode, or the only one, normalised."""
        found = self.vae.encode(pixels[:, :, 0])
        latents: Tensor = found.latent if hasattr(found, "latent") else found.latent_dist.mode()
        return ((latents - self.shift) * self.scale)[:, :, None]

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], [B, C, 1, H, W]."""
        pixels: Tensor = self.vae.decode(latents[:, :, 0] / self.scale + self.shift, return_dict=False)[0]
        return ((pixels + 1) / 2).clamp(0, 1)[:, :, None]

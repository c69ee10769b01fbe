"""Pixel space behind the interface of a VAE: takes the place of AutoencoderKLWan in a diffusers pipeline."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor


class PixelSpace(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Latents are pixels in [-1, 1], ``[B, C, T, H, W]``; decoding repeats each one ``scale_factor_spatial`` times.

    Frames are latent frames. The temporal factor of 4 is nominal: WanPipeline computes T latent frames from
    ``num_frames = 4 (T - 1) + 1``. ``pipe(prompt, height=64, width=64)`` of a stock WanPipeline therefore denoises
    8x8 pixels and shows them at 64x64.
    """

    config_name = "config.json"

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        z_dim: int = 1,  # noqa: ARG002 - the decorator puts all arguments into self.config
        latents_mean: tuple[float, ...] = (0.0,),  # noqa: ARG002
        latents_std: tuple[float, ...] = (1.0,),  # noqa: ARG002
        scale_factor_spatial: int = 8,  # noqa: ARG002
        scale_factor_temporal: int = 4,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.register_buffer("anchor", torch.zeros(1))  # diffusers asks a module for its dtype and device

    def encode(self, pixels: Tensor) -> Tensor:
        """Return every ``scale_factor_spatial``-th pixel."""
        step = self.config.scale_factor_spatial
        return pixels[..., ::step, ::step]

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Return ``([B, C, T, H * scale, W * scale],)``, as diffusers' VAEs do without ``return_dict``."""
        if return_dict:
            raise ValueError("PixelSpace.decode returns a tuple; call it with return_dict=False")
        scale = self.config.scale_factor_spatial
        return (latents.repeat_interleave(scale, -1).repeat_interleave(scale, -2),)

"""Wan2.1 text-to-video (and ``mini``, its miniature) through diffusers' unmodified WanTransformer3DModel.

Rectified flow: the network predicts ``eps - x0`` at flow time tau, given as ``1000 tau``. A pipeline whose VAE is
``PixelSpace`` (mini) works on pixels in [-1, 1].
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from rcm_core.bars import without_bars
from rcm_core.errors import InputError
from rcm_core.parameterisation import RectifiedFlow
from rcm_core.pixels import PixelSpace
from rcm_core.protocols import Condition, Parameterisation

blocks = ("WanTransformerBlock",)
network_class = "WanTransformer3DModel"
time_layer = "condition_embedder.time_embedder.linear_2"
pipeline_class = "WanPipeline"
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
TEXT_LENGTH = 512  # Wan's own; a tokenizer with a smaller model_max_length (mini) sets a smaller one


def load_network(folder: Path) -> nn.Module:
    """The transformer in ``folder/transformer``, float32, in eval mode.

    Raises InputError if the folder holds another family's network, or keys are missing or left over.
    """
    from diffusers import WanTransformer3DModel

    check_network(folder)
    network: nn.Module = WanTransformer3DModel.from_pretrained(
        folder / "transformer", torch_dtype=torch.float32
    )
    return network.eval()


def check_folder(folder: Path) -> None:
    """InputError unless ``folder`` is a whole Wan pipeline whose network has exactly the tensors that its
    config.json asks for; reads headers only.
    """
    refuse_other_family(folder)
    index = read_part(folder, "model_index.json")
    lacking = [part for part in PARTS if not (folder / part).is_dir()]
    if lacking:
        raise InputError(
            f"{folder} lacks {', '.join(lacking)}; expected a whole {pipeline_class} in diffusers layout"
        )
    if index.get("transformer_2", [None])[0] is not None:
        raise InputError(
            f"{folder} has a second transformer (Wan2.2); family wan has one: give a Wan2.1 pipeline"
        )
    vae_name(folder)
    check_network(folder)


def check_network(folder: Path) -> None:
    """InputError unless ``folder/transformer`` is this family's network, whole; reads headers only."""
    from diffusers import WanTransformer3DModel

    config = refuse_other_family(folder)
    with torch.device("meta"):
        network = WanTransformer3DModel.from_config(config)
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    found: dict[str, list[int]] = {}
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as stream:
                found |= {name: stream.get_slice(name).get_shape() for name in stream.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{path} is not a safetensors file ({error}); fetch it again") from error
    wrong = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
    if wrong:
        first = wrong[0]
        raise InputError(
            f"{folder / 'transformer'} differs from its config.json in {len(wrong)} tensors, first: {first} is"
            f" {found.get(first, 'missing')}, expected {expected.get(first, 'absent')}; export the teacher again"
        )


def read_part(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in ``folder/name``; InputError if there is none."""
    if not (folder / name).is_file():
        raise InputError(f"{folder} holds no {name}; expected a pipeline in diffusers layout")
    try:
        content = json.loads((folder / name).read_text())
    except ValueError as error:
        raise InputError(f"{folder / name} is not JSON ({error}); fetch the teacher again") from error
    if not isinstance(content, dict):
        raise InputError(f"{folder / name} holds no JSON object; fetch the teacher again")
    return content


def refuse_other_family(folder: Path) -> dict[str, Any]:
    """The network's config; InputError unless ``folder/transformer`` holds this family's network."""
    config = read_part(folder, "transformer/config.json")
    found = config.get("_class_name")
    if found != network_class:
        raise InputError(
            f"{folder} holds a {found}, but family wan needs a {network_class};"
            " set teacher.family to the family of that network"
        )
    return config


def parameterisation(folder: Path) -> Parameterisation:  # noqa: ARG001 - every Wan pipeline has the same one
    """Rectified flow with network time 1000 tau (E7, E8)."""
    return RectifiedFlow(time_scale=1000.0)


def call(network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
    """Network output for states ``x`` [B, C, T, H, W], times [B] and ``condition["text"]`` [B, L, D]."""
    output: Tensor = network(
        hidden_states=x, timestep=time, encoder_hidden_states=condition["text"], return_dict=False
    )[0]
    return output


class WanCodec:
    """Tokenizer, text encoder and, if there is one, VAE of a Wan pipeline folder."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, UMT5EncoderModel

        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        with without_bars():
            encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        self.encoder = encoder.eval()
        self.length = min(TEXT_LENGTH, self.tokenizer.model_max_length)
        self.vae = load_vae(folder)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> Condition:
        """``{"text": [B, L, D]}``: last hidden states, exactly zero behind each prompt's end (as diffusers does)."""
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        hidden: Tensor = self.encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return {"text": hidden * tokens.attention_mask.unsqueeze(-1)}

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pixels in [-1, 1], [B, C, T, H, W]: the posterior's mode, normalised as Wan's are."""
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


def vae_name(folder: Path) -> str:
    """AutoencoderKLWan, or PixelSpace for pixel-space teachers; InputError if model_index.json names another."""
    library, name = read_part(folder, "model_index.json").get("vae", [None, None])
    known = {("diffusers", "AutoencoderKLWan"), (PixelSpace.__module__, PixelSpace.__name__)}
    if (library, name) not in known:
        raise InputError(
            f"{folder}/model_index.json names the VAE {library}.{name}; family wan knows"
            f" {', '.join(sorted('.'.join(k) for k in known))}"
        )
    return str(name)


def load_vae(folder: Path) -> Any:
    """The VAE of ``folder`` as model_index.json names it (``vae_name``)."""
    if vae_name(folder) == "PixelSpace":
        return PixelSpace.from_pretrained(folder / "vae", local_files_only=True).eval()
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan.from_pretrained(folder / "vae", local_files_only=True).eval()


def load_codec(folder: Path) -> WanCodec:
    """The codec of the pipeline in ``folder``."""
    return WanCodec(folder)

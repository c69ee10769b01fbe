"""diffusers' own pipelines and our denoisers call the network equally at the same state, time and prompt.

The pipelines run a few guided steps; every call of the network is recorded with its output. Our denoiser, asked at the
TrigFlow state and angle of that call, must imply the same output.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import build
from torch import Tensor, nn

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.trigflow import per_sample
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.registry import find

# Letters as entities and full-width ones, which Wan's pipeline cleans; upper case, which SANA's lowers; white space at
# the ends; quotation marks, within which LongCat's spells.
PROMPT, NEGATIVE = " &amp;#116;he \uff44igit 7 \u201cthree\u201d ", "THE &#100;igit  three"


class Harmless(nn.Module):
    """Substitute for Cosmos' safety checker, which is a separate package."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def wan(folder: Path, network: Any, z: Tensor) -> None:
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder, transformer=network)
    side = {"height": 8 * z.shape[3], "width": 8 * z.shape[4], "num_frames": 4 * (z.shape[2] - 1) + 1}
    length = pipeline.tokenizer.model_max_length
    quiet(pipeline)(
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=3, guidance_scale=2.0, latents=z,
        max_sequence_length=length, output_type="latent", **side,
    )  # fmt: skip


def cosmos(folder: Path, network: Any, z: Tensor) -> None:
    from diffusers import AutoencoderKLWan, Cosmos2TextToImagePipeline, FlowMatchEulerDiscreteScheduler
    from transformers import AutoTokenizer, T5EncoderModel

    pipeline = Cosmos2TextToImagePipeline(
        T5EncoderModel.from_pretrained(folder / "text_encoder"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        network,
        AutoencoderKLWan.from_pretrained(folder / "vae"),
        FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        Harmless(),
    )
    quiet(pipeline)(
        PROMPT, negative_prompt=NEGATIVE, height=8 * z.shape[3], width=8 * z.shape[4], num_inference_steps=3,
        guidance_scale=2.0, latents=z[:, :, :1], max_sequence_length=8, output_type="latent",
    )  # fmt: skip


def sd3(folder: Path, network: Any, z: Tensor) -> None:
    from diffusers import StableDiffusion3Pipeline

    quiet(StableDiffusion3Pipeline.from_pretrained(folder, transformer=network))(
        PROMPT, negative_prompt=NEGATIVE, height=2 * z.shape[3], width=2 * z.shape[4], num_inference_steps=3,
        guidance_scale=2.0, latents=z[:, :, 0], max_sequence_length=8, output_type="latent",
    )  # fmt: skip


def longcat(folder: Path, network: Any, z: Tensor) -> None:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, LongCatImagePipeline
    from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

    pipeline = LongCatImagePipeline(
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        AutoencoderKL.from_pretrained(folder / "vae"),
        Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        None,
        network,
    )
    pipeline.tokenizer_max_length = 8
    packed = pipeline._pack_latents(z[:, :, 0], 1, z.shape[1], z.shape[3], z.shape[4])
    quiet(pipeline)(
        PROMPT, negative_prompt=NEGATIVE, height=2 * z.shape[3], width=2 * z.shape[4], num_inference_steps=3,
        guidance_scale=2.0, latents=packed, enable_cfg_renorm=False, enable_prompt_rewrite=False,
        output_type="latent",
    )  # fmt: skip


def sana(folder: Path, network: Any, z: Tensor) -> None:
    from diffusers import SanaPipeline

    quiet(SanaPipeline.from_pretrained(folder, transformer=network))(
        PROMPT, negative_prompt=NEGATIVE, height=32, width=32, num_inference_steps=3,
        guidance_scale=2.0, latents=z[:, :, 0], max_sequence_length=8, use_resolution_binning=False,
        output_type="latent",
    )  # fmt: skip


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


RUNS: dict[str, Callable[[Path, Any, Tensor], None]] = {
    "wan": wan, "cosmos": cosmos, "sd3": sd3, "longcat": longcat, "sana": sana,
}  # fmt: skip


def calls_of(name: str, folder: Path, z: Tensor) -> list[tuple[dict[str, Any], Tensor]]:
    """Return arguments and outputs of the network in the pipeline's run."""
    network = find("models", name).load_network(folder)
    found: list[tuple[dict[str, Any], Tensor]] = []

    def keep(module: nn.Module, given: Any, named: dict[str, Any], output: Any) -> None:
        found.append((named | ({"hidden_states": given[0]} if given else {}), output[0]))

    network.register_forward_hook(keep, with_kwargs=True)
    RUNS[name](folder, network, z)
    return found


def encoded(codec: Any) -> dict[str, Tensor]:
    """Return the conditions of the prompt and of the negative prompt, in this order."""
    prompt, negative = codec.encode_prompts([PROMPT]), codec.encode_text([NEGATIVE])
    return {name: torch.cat([value, negative[name]]) for name, value in prompt.items()}


def implied(denoiser: Denoiser, state: Tensor, tau: Tensor, condition: Any) -> Tensor:
    """Return the network output implied by our velocity at flow state ``state`` [B, C, T, H, W] and time ``tau``."""
    t = torch.atan2(tau, 1 - tau)
    x = per_sample(t.cos() + t.sin(), state) * state
    return RectifiedFlow().output(x, t, denoiser(x, t, condition))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' karras sigmas
@pytest.mark.parametrize("name", sorted(RUNS))
def test_our_calls_are_those_of_diffusers_pipeline(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "pipeline"
    shape = build(name, folder)
    family = find("models", name)
    z = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    denoiser = load_denoiser(folder, family)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(1)
        for parameter in denoiser.parameters():  # as initialised many modules hide what they are given
            parameter.normal_(0, 0.2, generator=rng)
    denoiser.network.save_pretrained(folder / "transformer")
    calls = calls_of(name, folder, z)
    texts = encoded(family.load_codec(folder))
    scale = {
        "cosmos": 1.0,
        "longcat": 1.0,
        "sana": 1000 * denoiser.network.config.get("timestep_scale", 1.0),
    }.get(name, 1000.0)
    seen = set()
    for given, output in calls:
        state, time = given["hidden_states"], given["timestep"].flatten()
        for row in range(len(state)):
            text = given["encoder_hidden_states"][row]
            which = min((0, 1), key=lambda i: float((texts["text"][i] - text).abs().max()))
            torch.testing.assert_close(texts["text"][which], text, rtol=1e-5, atol=1e-5)
            seen.add(which)
            condition = {name: value[which : which + 1] for name, value in texts.items()}
            mine, theirs = state[row : row + 1], output[row : row + 1]
            if name == "longcat":
                mine, theirs = (family.unpack(v, shape[2] // 2, shape[3] // 2) for v in (mine, theirs))
            if mine.ndim == 4:
                mine, theirs = mine[:, :, None], theirs[:, :, None]
            with torch.no_grad():
                found = implied(denoiser, mine, time[row : row + 1].float() / scale, condition)
            # a state that went to TrigFlow and back, and a time of up to 1000 in float32, embedded by cos and sin
            torch.testing.assert_close(found, theirs, rtol=2e-3, atol=2e-3 * float(theirs.abs().max()))
    assert seen == {0, 1}
    assert len(calls) >= 3

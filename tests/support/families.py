"""Tiny pipelines of every family, in the file layout of the real ones, with random weights."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rcm_core.config.mini_teacher import MiniTraining
from rcm_core.pipelines.mini import build_tokenizer, save_pipeline
from rcm_core.pipelines.quiet import without_bars

PROMPTS = ["the digit 7", "a handwritten seven", "three"]
TINY = MiniTraining(
    layers=2, heads=2, head_dim=16, ffn_dim=64, text_dim=16, text_length=6, steps=1, batch=1, lr=0.1,
    ema_length=0.1, condition_dropout=0.0, checkpoint_every=1,
)  # fmt: skip
LENGTH = 8
"""Maximum number of tokens of the tiny tokenizers."""
Shape = tuple[int, ...]


def write(folder: Path, pipeline: str, parts: Mapping[str, Any]) -> None:
    """Save ``parts`` as a pipeline of that class; (library, class) come from the parts themselves."""
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": "0.42.1"}
    with without_bars():
        for name, part in parts.items():
            part.save_pretrained(folder / name)
            library = "transformers" if type(part).__module__.startswith("transformers") else "diffusers"
            index[name] = [library, type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def scheduler() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def tokenizer() -> Any:
    return build_tokenizer(PROMPTS, LENGTH)


def t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=len(tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    ).eval()


def clip(width: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer()), hidden_size=width, intermediate_size=32, projection_dim=width,
            num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=LENGTH,
            bos_token_id=2, eos_token_id=1, pad_token_id=0,
        )
    ).eval()  # fmt: skip


def kl_vae(channels: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4, sample_size=16, scaling_factor=1.5,
        shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def video_vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 2.0, 1.0],
    )  # fmt: skip


def wan(folder: Path) -> Shape:
    save_pipeline(folder, (2, 3, 4, 6), PROMPTS, TINY, 3.0, seed=0)
    return (2, 3, 4, 6)


def cosmos(folder: Path, given: bool = False) -> Shape:
    """Write Cosmos; with ``given``, video to world, whose network also gets a mask of the conditioning frames."""
    from diffusers import CosmosTransformer3DModel

    network = CosmosTransformer3DModel(
        in_channels=4 + given, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        mlp_ratio=2.0, text_embed_dim=16, adaln_lora_dim=8, max_size=(8, 16, 16), rope_scale=(1.0, 1.0, 1.0),
        extra_pos_embed_type=None,
    )  # fmt: skip
    parts = {"transformer": network, "text_encoder": t5(16), "tokenizer": tokenizer(), "vae": video_vae()}
    write(
        folder,
        f"Cosmos2{'VideoToWorld' if given else 'TextToImage'}Pipeline",
        parts | {"scheduler": scheduler()},
    )
    return (4, 2, 4, 6)


def sd3(folder: Path) -> Shape:
    from diffusers import SD3Transformer2DModel

    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    parts = {"transformer": network, "vae": kl_vae(), "scheduler": scheduler()}
    for which, encoder in (("", clip(16)), ("_2", clip(8)), ("_3", t5(32))):
        parts |= {f"text_encoder{which}": encoder, f"tokenizer{which}": tokenizer()}
    write(folder, "StableDiffusion3Pipeline", parts)
    return (4, 1, 8, 6)


def longcat(folder: Path) -> Shape:
    from diffusers import LongCatImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    channels = 16  # LongCatImagePipeline supports only this number
    network = LongCatImageTransformer2DModel(
        in_channels=4 * channels, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=[4, 6, 6],
    )  # fmt: skip
    text = {
        "vocab_size": len(tokenizer()), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4},
        "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1,
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 16}
    encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision)
    ).eval()
    parts = {
        "transformer": network,
        "text_encoder": encoder,
        "tokenizer": tokenizer(),
        "vae": kl_vae(channels),
    }
    write(folder, "LongCatImagePipeline", parts | {"scheduler": scheduler()})
    return (channels, 1, 8, 6)


def sana(folder: Path) -> Shape:
    from diffusers import AutoencoderDC, SanaTransformer2DModel
    from transformers import Gemma2Config, Gemma2Model

    network = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=16, num_layers=2,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=16,
        sample_size=8, patch_size=1, mlp_ratio=1.0, qk_norm="rms_norm_across_heads", timestep_scale=0.001,
    )  # fmt: skip
    encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer()), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=2, eos_token_id=1,
        )
    ).eval()  # fmt: skip
    vae = AutoencoderDC(
        in_channels=3, latent_channels=4, attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)), scaling_factor=0.4,
    )  # fmt: skip
    parts = {"transformer": network, "text_encoder": encoder, "tokenizer": tokenizer(), "vae": vae}
    write(folder, "SanaPipeline", parts | {"scheduler": scheduler()})
    return (4, 1, 6, 4)


BUILDERS: dict[str, Callable[[Path], Shape]] = {
    "wan": wan, "cosmos": cosmos, "sd3": sd3, "longcat": longcat, "sana": sana,
}  # fmt: skip


def build(name: str, folder: Path) -> Shape:
    """Write a tiny pipeline of the family ``name``, the same for every call; return the shape of its states."""
    kept = Path(os.environ["RCM_TEST_PIPELINES"]) / name
    shape = _build_once(name, kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return shape


@cache
def _build_once(name: str, folder: Path) -> Shape:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BUILDERS[name](folder)

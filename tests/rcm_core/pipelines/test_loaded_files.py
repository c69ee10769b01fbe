"""The files of a pipeline that are transferred: those that ``from_pretrained`` loads from published layouts."""

from __future__ import annotations

import pytest

from rcm_core.pipelines.loaded_files import loaded_files

INDEX = {
    "_class_name": "WanPipeline",
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "image_encoder": [None, None],
}
WEIGHTS = "transformer/diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("variant", "left"),
    [
        (None, [f"{WEIGHTS}-00001-of-00002.safetensors", f"{WEIGHTS}-00002-of-00002.safetensors",
                f"{WEIGHTS}.safetensors.index.json", "text_encoder/model.safetensors"]),
        ("fp16", [f"{WEIGHTS}.fp16.safetensors", "text_encoder/model.safetensors"]),
        ("bf16", [f"{WEIGHTS}.bf16-00001-of-00001.safetensors", f"{WEIGHTS}.safetensors.index.bf16.json",
                  "text_encoder/model.safetensors"]),
    ],
    ids=["plain", "variant", "sharded variant"],
)  # fmt: skip
def test_one_format_and_variant_of_the_weights(variant: str | None, left: list[str]) -> None:
    names = [
        "model_index.json", "LICENSE.txt", "README.md", "wan.safetensors", "assets/shown.png", "image_encoder/a.bin",
        "text_encoder/config.json", "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin",
        "transformer/config.json", f"{WEIGHTS}-00001-of-00002.safetensors", f"{WEIGHTS}-00002-of-00002.safetensors",
        f"{WEIGHTS}.safetensors.index.json", f"{WEIGHTS}.fp16.safetensors", f"{WEIGHTS}.bin",
        f"{WEIGHTS}.bf16-00001-of-00001.safetensors", f"{WEIGHTS}.safetensors.index.bf16.json",
    ]  # fmt: skip
    always = ["model_index.json", "LICENSE.txt", "text_encoder/config.json", "transformer/config.json"]
    assert sorted(loaded_files(names, INDEX, variant)) == sorted([*always, *left])


def test_weights_of_another_format_alone_travel() -> None:
    names = ["text_encoder/config.json", "text_encoder/pytorch_model.bin", "text_encoder/tf_model.h5"]
    assert loaded_files(names, INDEX) == names[:2]

"""Pixels and latents of every family's VAE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import BUILDERS, build

from rcm_core.errors import InputError
from rcm_core.pipelines.vae import pixel_shape
from rcm_core.registry import find
from rcm_core.storage.files import read_json, write_json


@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_the_pixels_that_latents_need_are_known_without_weights(family: str, tmp_path: Path) -> None:
    shape = build(family, tmp_path)
    shapes = (shape, (*shape[:2], shape[2] * 2, shape[3]))
    (weights,) = (tmp_path / "vae").glob("*.safetensors")
    weights.rename(tmp_path / "aside")
    found = [pixel_shape(tmp_path, asked) for asked in shapes]
    (tmp_path / "aside").rename(weights)
    codec = find("models", family).load_codec(tmp_path)
    for asked, pixels in zip(shapes, found):
        assert tuple(codec.decode(torch.zeros(1, *asked)).shape[1:]) == pixels
        assert tuple(codec.encode(torch.zeros(1, *pixels)).shape[1:]) == asked


def test_the_published_wan_vae_says_no_factors(tmp_path: Path) -> None:
    build("cosmos", tmp_path)
    config = tmp_path / "vae/config.json"
    values = read_json(config, "teacher")
    write_json(config, {k: v for k, v in values.items() if not k.startswith("scale_factor")})
    assert pixel_shape(tmp_path, (16, 21, 60, 104)) == (3, 81, 480, 832)
    write_json(config, values | {"_class_name": "AutoencoderOther"})
    with pytest.raises(InputError, match=r"class AutoencoderOther\) is unknown, so images .*; import"):
        pixel_shape(tmp_path, (16, 21, 60, 104))

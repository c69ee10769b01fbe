"""Shapes that a network or a VAE does not support are refused on the meta device, before any allocation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from diffusers import WanTransformer3DModel
from families import BUILDERS, build, cosmos

from rcm_core.errors import InputError
from rcm_core.pipelines.headers import read_part
from rcm_core.pipelines.shape_check import check_shape, check_teacher_shape
from rcm_core.registry import find, find_family


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path, tuple[int, ...]]]:
    """Family, folder and state shape of a pipeline of every family."""
    root = tmp_path_factory.mktemp("families")
    return {name: (find("models", name), root / name, build(name, root / name)) for name in BUILDERS}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_shape_that_a_pipeline_samples_is_accepted(whole: dict[str, Any], name: str) -> None:
    family, folder, shape = whole[name]
    check_teacher_shape(family, folder, shape, "here")


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("wan", (2, 1, 7, 7), r"returns \[2, 1, 6, 6\]: it cuts them to patches"),
        ("wan", (4, 1, 8, 8), "does not take such states"),
        ("wan", (2, 1, 4096, 4096), r"does not take such states"),  # its table of positions is shorter
        ("cosmos", (4, 2, 5, 6), "here"),
        ("cosmos", (16, 2, 4, 6), "does not take such states"),
        ("sd3", (4, 1, 8, 7), r"returns \[4, 1, 8, 6\]"),
        ("sd3", (4, 2, 8, 8), r"returns \[4, 1, 8, 8\]: it makes images, which have one frame"),
        ("sd3", (4, 1, 32, 32), "does not take such states .*pos_embed_max_size"),
        ("longcat", (4, 1, 8, 7), "does not take such states"),
        ("longcat", (4, 3, 8, 8), "the network of here does not take such states"),
        ("longcat", (8, 1, 8, 8), "does not take such states"),
        ("sana", (4, 2, 8, 8), "it makes images, which have one frame"),
        ("sana", (4, 1, 4096, 4096), r"makes 16,777,216 tokens of it; expected at most 1,048,576"),
        ("sana", (4, 1, 10**7, 10**7), "teacher.shape is"),
    ],
)
def test_other_states_are_refused(
    whole: dict[str, Any], name: str, shape: tuple[int, ...], said: str
) -> None:
    family, folder, _ = whole[name]
    with pytest.raises(InputError, match=said) as caught:
        check_teacher_shape(family, folder, shape, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"z_dim": 8}, r"the VAE of here has 8 latent channels; set teacher\.shape to \[8, "),
        ({"latents_mean": [0.0, 1.0]}, "the VAE of here does not decode it"),
        ({"scale_factor_spatial": 16}, r"makes pixels of \[3, 5, 32, 48\], expected \[3, 5, 64, 96\]"),
        (
            {"scale_factor_spatial": 2**14},
            r"values of pixels of it; expected at most 2,147,483,648: choose fewer frames",
        ),
        ({"scale_factor_temporal": 2}, r"makes pixels of \[3, 5, 32, 48\], expected \[3, 3, 32, 48\]"),
    ],
)
def test_a_vae_that_decodes_something_else_is_refused(
    whole: dict[str, Any], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    family, folder, shape = whole["cosmos"]
    shutil.copytree(folder, tmp_path / "copy")
    config = read_part(folder, "vae/config.json")
    (tmp_path / "copy/vae/config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError, match=said):
        check_teacher_shape(family, tmp_path / "copy", shape, "here")


def test_networks_that_are_given_frames_or_a_picture_are_refused(tmp_path: Path) -> None:
    cosmos(tmp_path, given=True)
    family = find_family("cosmos")
    with pytest.raises(InputError, match="video-to-world network, which continues given frames"):
        check_teacher_shape(family, tmp_path, (4, 2, 4, 4), "here")
    config: Any = WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=16, in_channels=9, out_channels=4, text_dim=16,
        freq_dim=32, ffn_dim=32, num_layers=1, rope_max_seq_len=64,
    ).config  # fmt: skip
    for channels in (4, 9):
        with pytest.raises(InputError, match=r"teacher\.shape is .*, but the network of here"):
            check_shape(find_family("wan"), config, (channels, 2, 4, 4), "here")

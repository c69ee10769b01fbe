"""Folders of Wan pipelines: valid ones survive a round trip, errors are reported before any weight is read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.diffusion.trigflow import conditional_velocity, diffuse
from rcm_core.errors import InputError
from rcm_core.models import wan
from rcm_core.networks.denoiser import load_denoiser
from rcm_core.pixels import PixelSpace
from rcm_core.training.checkpointing.checkpoint import write_network

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_run: Path, tmp_path: Path) -> Path:
    """A pipeline that a test may damage."""
    shutil.copytree(tiny_run / "runs/teacher/pipeline", tmp_path / "pipeline")
    return tmp_path / "pipeline"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def refused(folder: Path, said: str) -> None:
    """Assert that ``check_folder`` says it in one sentence, and that ``load_network`` does not load it."""
    with pytest.raises(InputError, match=said) as caught:
        wan.check_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_network_goes_round_bit_for_bit(folder: Path, tmp_path: Path) -> None:
    wan.check_folder(folder)
    network = wan.load_network(folder)
    weights = network.state_dict()
    assert not network.training
    assert {t.dtype for t in weights.values()} == {torch.float32}
    write_network(tmp_path / "again/transformer", network, weights)
    again = wan.load_network(tmp_path / "again")
    assert all(torch.equal(weights[n], t) for n, t in again.state_dict().items())
    write_network(tmp_path / "third/transformer", again, again.state_dict())
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):  # and so do the bytes
        first, second = (tmp_path / n / "transformer" / name for n in ("again", "third"))
        assert first.read_bytes() == second.read_bytes()


def test_half_precision_weights_are_loaded_as_float32(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({k: v.bfloat16() for k, v in w.items()}))
    wan.check_folder(folder)
    assert {t.dtype for t in wan.load_network(folder).state_dict().values()} == {torch.float32}


def test_the_denoiser_is_the_rectified_flow_wrap_of_the_network(folder: Path) -> None:
    denoiser = load_denoiser(folder, wan)
    assert denoiser.parameterisation == RectifiedFlow(1000.0)
    rng = torch.Generator().manual_seed(0)
    x0, z = torch.randn(2, 3, 1, 1, 8, 8, generator=rng)
    t = torch.tensor([0.0, 0.7, torch.pi / 2])
    condition = wan.load_codec(folder).encode_text(["the digit 7", "a handwritten seven", ""])
    x = diffuse(x0, z, t)
    with torch.no_grad():
        F = denoiser(x, t, condition)
        # the state of rectified flow at tau = sin t / (cos t + sin t) is x / (cos t + sin t)
        c = (t.cos() + t.sin()).view(-1, 1, 1, 1, 1)
        tau = t.sin() / c.flatten()
        u = wan.call(denoiser.network, x / c, 1000 * tau, condition)
        # F = dx/dt of x_t = c x_tau: dc/dt x_tau + c u dtau/dt, and dtau/dt = 1 / c^2
        expected = (t.cos() - t.sin()).view(-1, 1, 1, 1, 1) / c * x + u / c
    torch.testing.assert_close(F, expected, rtol=1e-5, atol=1e-5)  # the same float32 numbers in another order
    perfect = denoiser.parameterisation.velocity(x, t, z - x0)  # the output at the optimum for one pair
    torch.testing.assert_close(perfect, conditional_velocity(x0, z, t), rtol=1e-5, atol=1e-5)


def test_text_behind_the_prompt_s_end_is_zero_and_unknown_words_are_one_word(folder: Path) -> None:
    codec = wan.load_codec(folder)
    text = codec.encode_text(["the digit 7", "a handwritten seven", "THE  digit 7", "the digit qwertz"])[
        "text"
    ]
    assert text.shape[1] == codec.length == codec.tokenizer.model_max_length
    assert text[0, 4:].abs().max() == 0  # three words and the end
    assert text[0, :4].abs().min(dim=1).values.max() > 0
    torch.testing.assert_close(text[0], text[2], rtol=0, atol=0)
    assert not torch.equal(text[0], text[1])
    torch.testing.assert_close(text[3], codec.encode_text(["the digit zzz"])["text"][0], rtol=1e-5, atol=1e-6)


def test_pixel_space_is_its_own_inverse(folder: Path) -> None:
    vae = wan.load_codec(folder).vae
    assert isinstance(vae, PixelSpace)
    latents = torch.rand(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    (shown,) = vae.decode(latents)
    assert shown.shape == (2, 1, 3, 64, 64)
    assert torch.equal(vae.encode(shown), latents)
    with pytest.raises(ValueError, match="return_dict=False"):
        vae.decode(latents, return_dict=True)
    pixels = wan.load_codec(folder).decode(torch.tensor([-1.0, 0.0, 1.0, 1.5]).view(1, 1, 1, 1, 4))
    assert pixels.flatten().tolist() == [0.0, 0.5, 1.0, 1.0]


def test_another_family_is_refused(folder: Path) -> None:
    edit(folder / "transformer/config.json", lambda c: c.update(_class_name="SD3Transformer2DModel"))
    said = "holds a SD3Transformer2DModel, but family wan needs a WanTransformer3DModel; set teacher.family"
    refused(folder, said)
    with pytest.raises(InputError, match=said):
        wan.load_network(folder)


def test_a_wan_with_two_transformers_is_refused(folder: Path) -> None:
    edit(
        folder / "model_index.json",
        lambda c: c.update(transformer_2=["diffusers", "WanTransformer3DModel"]),
    )
    refused(folder, r"second transformer \(Wan2.2\)")


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "tokenizer", "vae", "scheduler"])
def test_a_missing_part_is_named(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    refused(folder, f"{part}.*diffusers layout")


def test_no_pipeline_at_all_is_said(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path, "holds no model_index.json; expected a pipeline in diffusers layout")
    (folder / "model_index.json").unlink()
    refused(folder, "holds no model_index.json")


@pytest.mark.parametrize("name", ["model_index.json", "transformer/config.json"])
@pytest.mark.parametrize(
    ("text", "said"), [("{half", "is not JSON"), ("[1]", "holds a list; expected a JSON object")]
)
def test_a_damaged_description_is_named(folder: Path, name: str, text: str, said: str) -> None:
    (folder / name).write_text(text)
    refused(folder, f"{name} {said}.*fetch the teacher again")


def test_a_missing_an_extra_and_a_wrong_tensor_are_named(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    name, value = "blocks.0.attn1.to_q.weight", weights["blocks.0.attn1.to_q.weight"]
    shape = str(list(value.shape)).replace("[", r"\[")
    other = str(list(value[:-1].shape)).replace("[", r"\[")
    edit_weights(folder, lambda w: w.pop(name))
    refused(folder, rf"1 tensors, first: {name} is missing, expected {shape}; export the teacher again")
    edit_weights(folder, lambda w: w.update({name: value, "blocks.9.extra": torch.zeros(2)}))
    refused(folder, r"1 tensors, first: blocks\.9\.extra is \[2\], expected absent")
    edit_weights(folder, lambda w: w.update({name: value[:-1]}) or w.pop("blocks.9.extra"))
    refused(folder, rf"1 tensors, first: {name} is {other}, expected {shape}")
    with pytest.raises(InputError, match=name):
        wan.load_network(folder)


def test_weights_that_are_absent_are_named(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    refused(folder, "transformer holds no weights; expected diffusion_pytorch_model.safetensors or")


@pytest.mark.parametrize("damage", ["header", "truncated", "empty"])
def test_a_damaged_weight_file_is_named(folder: Path, damage: str) -> None:
    content = (folder / WEIGHTS).read_bytes()
    damaged = {"header": b"\xff" * 16 + content[16:], "truncated": content[:-100], "empty": b""}
    (folder / WEIGHTS).write_bytes(damaged[damage])
    refused(folder, rf"{WEIGHTS} is not a safetensors file \(.*\); fetch it again")


def test_an_unknown_vae_is_named(folder: Path) -> None:
    edit(folder / "model_index.json", lambda c: c.update(vae=["diffusers", "AutoencoderKL"]))
    refused(
        folder, r"names the VAE diffusers\.AutoencoderKL; family wan knows diffusers\.AutoencoderKLWan, rcm"
    )
    edit(folder / "model_index.json", lambda c: c.pop("vae"))
    refused(folder, r"model_index\.json has vae = null; expected \[library, class\]")


def test_weights_of_another_network_are_not_written(folder: Path, tmp_path: Path) -> None:
    network = wan.load_network(folder)
    weights = dict(network.state_dict())
    weights["extra"] = weights.pop("proj_out.bias")
    with pytest.raises(ValueError, match=r"differ from the network's in \['extra', 'proj_out.bias'\]"):
        write_network(tmp_path / "out", network, weights)
    assert not (tmp_path / "out").exists()

"""Networks in bfloat16 for sampling: close to float32, and the time is not rounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SanaTransformer2DModel
from families import BUILDERS, build

from infra.commands.families import family_of
from rcm_core.device import refuse_precision
from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.errors import InputError
from rcm_core.networks.denoiser import GUIDANCE_SCALE, Denoiser, load_denoiser, lower
from rcm_core.networks.embeddings import waves
from rcm_core.registry import find
from rcm_core.samplers.jobs import Job, Teacher, sample


@pytest.mark.parametrize("family", BUILDERS)
def test_a_lowered_network_is_near_and_sees_the_time_in_float32(family: str, tmp_path: Path) -> None:
    build(family, tmp_path)
    ours = family_of(tmp_path)
    plain, low = (load_denoiser(tmp_path, ours) for _ in range(2))
    lower(low)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16, torch.float32}
    times: list[torch.Tensor] = []
    features = low.network.get_submodule(ours.time_features)
    features.register_forward_pre_hook(lambda _, inputs: times.append(inputs[0]))
    config = json.loads((tmp_path / "transformer/config.json").read_text())
    x, condition = ours.example(config, 2, torch.Generator().manual_seed(0))
    # in bfloat16 these would be one time
    t = torch.tensor([1.2, 1.2005])
    with torch.no_grad():
        expected, found = plain(x, t, condition), low(x, t, condition)
    assert found.dtype == torch.float32
    # eight bits: half a per cent per operation, of which a few dozen stand one after another
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(found, expected)
    assert times[0].dtype == torch.float32
    assert len(times[0].unique()) == 2


@pytest.mark.parametrize("name", ["end", "guidance"])
def test_a_second_time_and_an_embedded_guidance_are_not_rounded(name: str, tmp_path: Path) -> None:
    build("wan", tmp_path)
    ours: Any = family_of(tmp_path)
    low = lower(load_denoiser(tmp_path, ours, (name,)))
    seen: list[torch.Tensor] = []
    low.extras[name].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    config = json.loads((tmp_path / "transformer/config.json").read_text())
    x, condition = ours.example(config, 2, torch.Generator().manual_seed(0))
    value = torch.tensor([1.2, 1.2005])  # in bfloat16 these would be one
    with torch.no_grad():
        torch.nn.init.normal_(low.extras[name].layers[2].weight)
        low(x, torch.tensor([1.3, 1.3]), {**condition, name: value})
    scale = GUIDANCE_SCALE if name == "guidance" else 1.0
    assert torch.equal(seen[0], scale * value)
    low.extras.bfloat16()  # the phases are exact for any dtype of the weights
    exact, phases = waves(value), []
    low.extras[name].layers[0].register_forward_pre_hook(lambda _, inputs: phases.append(inputs[0]))
    low.extras[name](value)
    assert torch.equal(phases[0], exact.bfloat16())


def test_sana_s_own_guidance_scale_is_not_rounded(tmp_path: Path) -> None:
    build("sana", tmp_path)
    config = json.loads((tmp_path / "transformer/config.json").read_text()) | {"guidance_embeds": True}
    network: Any = SanaTransformer2DModel.from_config(config)
    seen: list[torch.Tensor] = []
    network.time_embed.guidance_condition_proj.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    sana: Any = find("models", "sana")
    denoiser = Denoiser(network.bfloat16(), sana, RectifiedFlow(1.0))
    denoiser.compute = torch.bfloat16
    x, condition = sana.example(config, 2, torch.Generator().manual_seed(0))
    scales = torch.tensor([4.5, 4.501])
    with torch.no_grad():
        denoiser(x, torch.tensor([1.3, 1.3]), {**condition, "guidance": scales})
    assert torch.equal(seen[0], network.config.guidance_embeds_scale * scales)


def test_samples_of_a_teacher_in_bfloat16(tmp_path: Path) -> None:
    shape = build("sd3", tmp_path)
    plain = Teacher(str(tmp_path), "sd3", shape, 2.0, 3, 3.0, "euler", "")
    low = Teacher(str(tmp_path), "sd3", shape, 2.0, 3, 3.0, "euler", "", precision="bfloat16")
    expected, found = (
        sample(Job(teacher, ("three", "the digit 7"), (0, 1), 0, 3)) for teacher in (plain, low)
    )
    assert (found - expected).norm() < 0.1 * expected.norm()
    assert not torch.equal(found, expected)


def test_a_gpu_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(
        InputError, match=r"bfloat16 was asked for, but Tesla T4 does not support it; set teacher\.precision"
    ):
        refuse_precision("bfloat16", torch.device("cuda"))
    refuse_precision("float32", torch.device("cuda"))
    refuse_precision("bfloat16", torch.device("cpu"))

"""Networks in bfloat16, for sampling: near float32, and the time is not rounded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from families import BUILDERS, build

from rcm_core.denoiser import load_denoiser, lower
from rcm_core.device import refuse_precision
from rcm_core.errors import InputError
from rcm_core.registry import family_of
from rcm_core.sampling import Job, Teacher, sample


@pytest.mark.parametrize("family", BUILDERS)
def test_a_lowered_network_is_near_and_sees_the_time_in_float32(family: str, tmp_path: Path) -> None:
    build(family, tmp_path)
    ours = family_of(tmp_path)
    plain, low = (load_denoiser(tmp_path, ours) for _ in range(2))  # type: ignore[arg-type]
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
        InputError, match=r"bfloat16 was asked for, but Tesla T4 has none; set teacher\.precision"
    ):
        refuse_precision("bfloat16", torch.device("cuda"))
    refuse_precision("float32", torch.device("cuda"))
    refuse_precision("bfloat16", torch.device("cpu"))

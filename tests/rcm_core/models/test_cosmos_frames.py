"""Cosmos-Predict2's video to world: the contract, the conditioning frames, and the refusal of other teachers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import cosmos
from torch import Tensor
from workspaces import configure

from infra import cli
from infra.commands.families import family_of
from infra.executors.local import LocalExecutor
from rcm_core.errors import InputError
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.stages import teacher


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cosmos(tmp_path / "world", given=True)
    return tmp_path / "world"


def made(folder: Path) -> tuple[Denoiser, Tensor, dict[str, Tensor]]:
    denoiser = load_denoiser(folder, family_of(folder))
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in denoiser.parameters():  # as initialised the last layer is nought
            weight.normal_(0, 0.1, generator=rng)
    config = {"in_channels": 5, "out_channels": 4, "text_embed_dim": 16}
    x, condition = denoiser.family.example(config, 2, rng)
    return denoiser, x, dict(condition)


def test_the_contract_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["rcm", "check-model", str(folder)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0, capsys.readouterr().out


@torch.no_grad()
def test_where_frames_are_given_the_path_ends_in_them(folder: Path) -> None:
    denoiser, x, condition = made(folder)
    t = torch.tensor([1.2, 0.4])
    velocity = denoiser(x, t, condition)
    angle = t[:, None, None, None, None]
    ending = angle.cos() * x - angle.sin() * velocity  # E2: x0 at the end of the path
    given = condition["given"].bool()
    torch.testing.assert_close(  # float32, divided by the angle's tangent
        ending.transpose(1, 2)[given], condition["frames"].transpose(1, 2)[given], rtol=1e-4, atol=1e-4
    )
    # what the state has there counts for nothing elsewhere; what is given does
    changed = x + given[:, None, :, None, None]
    free = ~given
    assert torch.equal(denoiser(changed, t, condition).transpose(1, 2)[free], velocity.transpose(1, 2)[free])
    condition["frames"] = condition["frames"] + 1
    assert not torch.equal(denoiser(x, t, condition).transpose(1, 2)[free], velocity.transpose(1, 2)[free])


def test_a_teacher_of_prompts_is_no_such(folder: Path, workspace: Path) -> None:
    params = configure(
        workspace,
        {
            "teacher.source": str(folder),
            "teacher.family": "cosmos",
            "teacher.mini": None,
            "teacher.shape": [4, 2, 4, 6],
        },
    )
    with pytest.raises(
        InputError, match=r"is a video-to-world network, which continues given frames, but the stages"
    ):
        teacher.run(params, workspace, LocalExecutor(workspace))

"""LoRA on a frozen teacher: weights and gradients of each role, and the written files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from families import build
from processes import on_ranks
from ranks import distil_on
from resumed import trained
from safetensors.torch import load_file
from torch import Tensor
from workspaces import configure

from infra.commands.families import family_of
from infra.executors.local import LocalExecutor
from rcm_core.config.load import load_params
from rcm_core.config.sections import LoraSection
from rcm_core.errors import InputError
from rcm_core.jvp import flash_jvp, jvp
from rcm_core.jvp.float64 import Exactly
from rcm_core.networks.denoiser import load_denoiser
from rcm_core.networks.weights import LORA, Target, loading, read_lora
from rcm_core.pipelines.quiet import without_bars
from rcm_core.registry import find, find_family
from rcm_core.samplers.jobs import network_of
from rcm_core.stages import evaluate, publish, select, train
from rcm_core.training.lora import Adapted, Shared, load_shared
from rcm_core.training.parallel.activation_checkpointing import checkpoint_blocks

SECTION = LoraSection(rank=3, alpha=6, targets=None)
FAMILIES = ("wan", "cosmos", "sd3", "longcat", "sana")
CPU = torch.device("cpu")


def roles(folder: Path, family: str, grown: bool = True) -> tuple[Shared, dict[str, Adapted]]:
    """Return student and fake score on one network, with non-zero LoRA matrices if ``grown``."""
    build(family, folder)
    shared = load_shared(folder, find_family(family), SECTION, ["fake", "student"], 0)
    views = {role: Adapted(shared, role, folder) for role in ("fake", "student")}
    rng = torch.Generator().manual_seed(1)
    for view in views.values() if grown else ():
        for parameter in view.parameters():
            parameter.data.normal_(0, 0.1, generator=rng)
    return shared, views


def asked(shared: Shared, folder: Path) -> tuple[Tensor, Tensor, Any]:
    config = json.loads((folder / "transformer/config.json").read_text())
    x, condition = shared.family.example(config, 2, torch.Generator().manual_seed(2))
    return x, torch.tensor([1.2, 0.4]), condition


@pytest.mark.parametrize("family", FAMILIES)
def test_every_role_begins_as_the_teacher(family: str, tmp_path: Path) -> None:
    shared, views = roles(tmp_path, family, grown=False)
    x, t, condition = asked(shared, tmp_path)
    plain = load_denoiser(tmp_path, family_of(tmp_path))(x, t, condition)
    for view in (*views.values(), Adapted(shared, None, tmp_path)):
        assert torch.equal(view(x, t, condition), plain)
    many = sum(p.numel() for p in load_denoiser(tmp_path, family_of(tmp_path)).parameters())
    assert (
        sum(p.numel() for p in shared.parameters() if not p.requires_grad) == many
    )  # one network, not three
    assert list(Adapted(shared, None, tmp_path).parameters()) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_merged_is_what_the_role_computes(family: str, tmp_path: Path) -> None:
    shared, views = roles(tmp_path, family)
    x, t, condition = asked(shared, tmp_path)
    merged = load_denoiser(tmp_path, family_of(tmp_path))
    student = views["student"]
    student.write(tmp_path, student.state_dict())
    with loading(Target(lora=read_lora(tmp_path / LORA))):
        merged.network = family_of(tmp_path).load_network(tmp_path)
    found = student(x, t, condition)
    # float32: W x + s B (A x) against (W + s B A) x
    torch.testing.assert_close(found, merged(x, t, condition), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found, views["fake"](x, t, condition), rtol=1e-2, atol=1e-2)
    assert not torch.allclose(found, Adapted(shared, None, tmp_path)(x, t, condition), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", ["none", "blocks", "matmuls"])
def test_gradients_are_the_role_s_own_whoever_speaks_before_backward(kind: str, tmp_path: Path) -> None:
    shared, views = roles(tmp_path, "sd3")
    checkpoint_blocks(shared.blocks(), kind, shared.wrap_forward)
    x, t, condition = asked(shared, tmp_path)
    loss = views["student"](x, t, condition).square().mean()
    views["fake"](x, t, condition)
    loss.backward()
    found = {name: p.grad.clone() for name, p in views["student"].named_parameters() if p.grad is not None}
    assert all(p.grad is None for p in views["fake"].parameters())
    assert all(p.grad is None for p in shared.parameters() if not p.requires_grad)
    # central differences in float64, along the gradient itself
    shared.double()
    length = torch.stack([g.double().square().sum() for g in found.values()]).sum().sqrt()
    values = []
    for sign in (1, -1):
        for name, p in views["student"].named_parameters():
            p.data.add_(found[name].double() / length, alpha=sign * 1e-5)
        double = {k: v.double() for k, v in condition.items()}
        values.append(float(views["student"](x.double(), t.double(), double).detach().square().mean()))
        for name, p in views["student"].named_parameters():
            p.data.sub_(found[name].double() / length, alpha=sign * 1e-5)
    torch.testing.assert_close((values[0] - values[1]) / 2e-5, float(length), rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_tangents_go_through_the_matrices(family: str, tmp_path: Path) -> None:
    shared, views = roles(tmp_path, family)
    x, t, condition = asked(shared, tmp_path)
    shared.double()
    x, t, condition = x.double(), t.double(), {k: v.double() for k, v in condition.items()}
    dx, dt = (
        torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(3)),
        torch.ones_like(t),
    )

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return views["student"](x, t, condition)  # type: ignore[no-any-return]

    with torch.no_grad(), flash_jvp(), Exactly():
        tangent = jvp(velocity, (x, t), (dx, dt))[1]
        step = 1e-7
        more, less = velocity(x + step * dx, t + step * dt), velocity(x - step * dx, t - step * dt)
    # as in `rcm check-model`: float64 keeps seven digits of a difference
    torch.testing.assert_close(
        tangent, (more - less) / (2 * step), rtol=1e-4, atol=1e-5 * float(tangent.abs().max())
    )


def test_targets_are_chosen_by_the_ends_of_names(tmp_path: Path) -> None:
    build("wan", tmp_path)
    family: Any = find("models", "wan")
    chosen = LoraSection(rank=2, alpha=2, targets=("to_q", "ffn.net.2"))
    shared = load_shared(tmp_path, family, chosen, ["student"], 0)
    names = {name.rsplit("/", 1)[0] for name in Adapted(shared, "student", tmp_path).lora}
    assert names == {
        f"blocks/{i}/{part}" for i in range(2) for part in ("attn1/to_q", "attn2/to_q", "ffn/net/2")
    }
    with pytest.raises(InputError, match=r"train\.lora\.targets has 'to_x', but no linear layer .*to_q"):
        load_shared(tmp_path, family, LoraSection(rank=2, alpha=2, targets=("to_x",)), ["student"], 0)


def settings(workspace: Path, **changes: Any) -> None:
    configure(workspace, {"train.lora": {"rank": 3, "alpha": 6, "targets": None}, **changes})


def test_candidates_of_lora_are_matrices_and_are_merged_when_published(workspace: Path) -> None:
    settings(workspace)
    params = load_params(workspace / "params.yaml")
    executor = LocalExecutor(workspace)
    train.run(params, workspace, executor)
    select.run(params, workspace, executor)
    for place in (
        workspace / "runs/select/transformer",
        *workspace.glob("runs/train/candidates/*/transformer"),
    ):
        assert [p.name for p in place.iterdir()] == [LORA]
    evaluate.run(params, workspace, executor)
    publish.run(params, workspace, executor)
    chosen = workspace / "runs/publish/pipeline/transformer"
    teacher = workspace / "runs/teacher/pipeline"
    before = load_file(teacher / "transformer/diffusion_pytorch_model.safetensors")
    after = load_file(chosen / "diffusion_pytorch_model.safetensors")
    matrices = load_file(chosen / LORA)
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {n.removeprefix("transformer.").replace("lora_A.", "") for n in matrices if "lora_A" in n}
    with without_bars():
        pipeline = DiffusionPipeline.from_pretrained(teacher)
        pipeline.load_lora_weights(chosen)
    unmerged = network_of(str(teacher), "wan", str(workspace / "runs/select/transformer"), "cpu")
    assert all(torch.equal(after[n], value) for n, value in unmerged.network.state_dict().items())
    student = load_denoiser(teacher, find_family("wan"))
    student.network.load_state_dict(after)
    x = torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(1))
    ours, theirs = (
        network(hidden_states=x, timestep=torch.tensor([900.0, 100.0]), encoder_hidden_states=text).sample
        for network in (student.network, pipeline.transformer)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # float32, summed in another order


def test_interrupted_it_goes_on_to_the_same_bits(workspace: Path, tmp_path: Path) -> None:
    settings(workspace)
    whole, parts = trained(workspace, tmp_path / "whole", 12), trained(workspace, tmp_path / "parts", 8, 12)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_two_sharded_ranks_train_what_one_does(workspace: Path, tmp_path: Path) -> None:
    states = {}
    for world in (1, 2):
        parts = {"train.workers": world, "train.accumulate": 2 // world}
        settings(workspace, **parts, **{"train.iterations": 4, "train.candidate_every": 4})
        states[world] = tmp_path / str(world)
        states[world].mkdir()
        on_ranks(distil_on, (world, workspace, states[world]), world)
    one, two = (load_file(next(state.glob("candidates/*/transformer")) / LORA) for state in states.values())
    assert one.keys() == two.keys()
    for name, value in one.items():
        # a few updates of at most 1e-3; where a gradient is all but zero AdamW makes a whole step of its rounding
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train.warm_start": {"student": "a", "teacher": "b"}}, "set one of them to null"),
        ({"train.lora.rank": 0}, r"train\.lora\.rank = 0"),
        ({"train.lora.targets": []}, r"train\.lora\.targets"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused(workspace: Path, changes: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        settings(workspace, **changes)

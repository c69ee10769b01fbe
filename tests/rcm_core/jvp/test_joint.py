"""One pass for value, gradient and tangent: the same as two passes, on one rank and on two with FSDP2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from processes import on_ranks
from torch import Tensor, nn

from rcm_core.diffusion.parameterisation import RectifiedFlow
from rcm_core.jvp import flash_jvp, joint_jvp, jvp
from rcm_core.networks.denoiser import Denoiser
from rcm_core.pipelines.mini import build_network
from rcm_core.registry import find_family
from rcm_core.training.parallel.sharding import shard


def denoiser() -> Denoiser:
    """Return a diffusers Wan of three blocks, the same at every call."""
    network = build_network(channels=1, heads=2, head_dim=12, layers=3, ffn_dim=32, text_dim=8).train()
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.2, generator=rng)
    return Denoiser(network, find_family("wan"), RectifiedFlow(time_scale=1000.0))


def draw(rank: int = 0) -> tuple[Tensor, ...]:
    """Draw state and angle, their tangents, the text, and weights of a loss."""
    rng = torch.Generator().manual_seed(rank)
    x, a, weights = (torch.randn(2, 1, 1, 4, 4, generator=rng) for _ in range(3))
    t, s = (torch.rand(2, generator=rng, dtype=torch.float64) for _ in range(2))
    return x, t, a, s * 1e-3, torch.randn(2, 3, 8, generator=rng), weights


def gradients(student: Denoiser) -> dict[str, Tensor]:
    found = {}
    for name, p in student.network.named_parameters():
        if p.grad is not None:
            found[name] = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad.clone()
    student.network.zero_grad()
    return found


def two_passes(student: Denoiser, rank: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x, t, a, s, text, weights = draw(rank)
    with torch.no_grad(), flash_jvp():
        _, tangent = jvp(lambda u, v: student(u, v, {"text": text}), (x, t), (a, s))
    value = student(x, t, {"text": text})
    (value * weights).sum().backward()
    return value.detach(), tangent, gradients(student)


def one_pass(student: Denoiser, rank: int = 0) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    x, t, a, s, text, weights = draw(rank)
    value, tangent = joint_jvp(lambda u, v: student(u, v, {"text": text}), (x, t), (a, s), student.blocks())
    assert value.requires_grad
    assert not tangent.requires_grad
    (value * weights).sum().backward()
    return value.detach(), tangent, gradients(student)


def same(
    found: tuple[Tensor, Tensor, dict[str, Tensor]], expected: tuple[Tensor, Tensor, dict[str, Tensor]]
) -> None:
    """Assert equality up to float32 rounding of the largest element: three blocks, two algorithms (1.4e-5 was seen)."""
    assert found[2].keys() == expected[2].keys()
    pairs = [(found[0], expected[0]), (found[1], expected[1])]
    pairs += [(found[2][name], expected[2][name]) for name in found[2]]
    for mine, theirs in pairs:
        assert float((mine - theirs).abs().max()) <= 1e-4 * max(1e-3, float(theirs.abs().max()))
    assert any(float(g.abs().max()) > 0 for g in found[2].values())


def test_value_tangent_and_gradients_are_those_of_two_passes() -> None:
    student = denoiser()
    same(one_pass(student), two_passes(student))


def test_the_module_is_left_as_it_was() -> None:
    student = denoiser()
    before = two_passes(student)
    one_pass(student)
    after = two_passes(student)
    assert torch.equal(before[0], after[0])
    assert all("forward" not in vars(b) and not b._forward_hooks for b in student.blocks())


def test_parameters_have_gradients_where_no_input_of_a_block_has_one() -> None:
    student = denoiser()
    inside = {id(p) for b in student.blocks() for p in b.parameters()}
    for p in student.network.parameters():
        p.requires_grad_(id(p) in inside)
    found = one_pass(student)
    assert found[2].keys() == two_passes(student)[2].keys()
    assert len(found[2]) == len(inside)


def test_no_graph_is_kept_inside_the_blocks() -> None:
    """The test compares the tensors saved for backward by a plain forward and by this one."""
    student = denoiser()
    x, t, a, s, text, _ = draw()

    def kept(call: object) -> int:
        sizes: list[int] = []

        def pack(saved: Tensor) -> Tensor:
            sizes.append(saved.nbytes)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            call()  # type: ignore[operator]
        return sum(sizes)

    plain = kept(lambda: student(x, t, {"text": text}))
    joint = kept(
        lambda: joint_jvp(lambda u, v: student(u, v, {"text": text}), (x, t), (a, s), student.blocks())
    )
    assert joint < 0.5 * plain


def on_a_rank(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=2)
    student = denoiser()
    shard(student, 2, torch.device("cpu"))
    joint = one_pass(student, rank)
    torch.save((joint, two_passes(student, rank)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.system
def test_two_ranks_with_fsdp2(tmp_path: Path) -> None:
    on_ranks(on_a_rank, (tmp_path,), 2)
    alone = [two_passes(denoiser(), rank) for rank in range(2)]
    for rank in range(2):
        joint, two = torch.load(tmp_path / f"{rank}.pt")
        same(joint, two)
        mean = {name: (alone[0][2][name] + alone[1][2][name]) / 2 for name in alone[0][2]}
        same(joint, (alone[rank][0], alone[rank][1], mean))


class Toy(nn.Module):
    """A block that returns two values, the second untouched."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.drop(self.line(x).tanh()) + text, text


def toys() -> tuple[list[nn.Module], Tensor, Tensor]:
    torch.manual_seed(0)
    return [Toy(), Toy()], torch.randn(6, 4), torch.randn(6, 4)


def chain(blocks: list[nn.Module], x: Tensor) -> Tensor:
    text = torch.ones(6, 4)
    for block in blocks:
        x, text = block(x, text)
    return x


@pytest.mark.parametrize("frozen", [False, True])
def test_blocks_of_several_outputs_with_dropout_and_frozen_parts(frozen: bool) -> None:
    """The mask that the value saw is the one that the gradient sees."""
    blocks, x, along = toys()
    blocks[0].requires_grad_(not frozen)
    found = []
    for joint in (True, False):
        torch.manual_seed(1)
        value = (
            joint_jvp(lambda a: chain(blocks, a), (x,), (along,), blocks)[0] if joint else chain(blocks, x)
        )
        value.square().sum().backward()
        found.append(
            [value.detach(), *[p.grad for b in blocks for p in b.parameters() if p.grad is not None]]
        )
        for block in blocks:
            block.zero_grad()
    assert len(found[0]) == len(found[1]) == (3 if frozen else 5)
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)  # float32 sums of six products


def test_backward_outside_of_autocast_repeats_its_precision() -> None:
    blocks, x, along = toys()
    for block in blocks:
        block.eval()
    with torch.autocast("cpu", torch.bfloat16):
        value = joint_jvp(lambda a: chain(blocks, a), (x,), (along,), blocks)[0]
        expected = chain(blocks, x)
    gradients = []
    for found in (value, expected):
        found.sum().backward()
        gradients.append([p.grad for block in blocks for p in block.parameters()])
        for block in blocks:
            block.zero_grad()
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*gradients))


def test_a_forward_that_was_put_on_an_instance_stays() -> None:
    blocks, x, along = toys()
    own = blocks[0].forward
    blocks[0].forward = lambda *given: own(*given)  # type: ignore[method-assign]
    before = blocks[0].forward
    joint_jvp(lambda a: chain(blocks, a), (x,), (along,), blocks)
    assert blocks[0].forward is before
    assert "forward" not in vars(blocks[1])


def test_a_missing_tangent_is_zero() -> None:
    student = denoiser()
    x, t, a, _, text, _ = draw()

    def call(u: Tensor, v: Tensor) -> Tensor:
        return student(u, v, {"text": text})

    found = joint_jvp(call, (x, t), (a, None), student.blocks())[1]
    expected = joint_jvp(call, (x, t), (a, torch.zeros_like(t)), student.blocks())[1]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)  # float32, zeros left out of sums

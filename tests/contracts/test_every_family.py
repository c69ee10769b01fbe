"""What every file in rcm_core/models must keep: run this on a family of your own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BUILDERS, PROMPTS, build
from safetensors.torch import load_file, save_file
from torch import Tensor

from rcm_core.denoiser import Denoiser, load_denoiser
from rcm_core.errors import InputError
from rcm_core.jvp import flash_jvp, jvp
from rcm_core.protocols import Condition
from rcm_core.registry import available, find
from rcm_core.training.checkpoint import write_network

FAMILIES = available("models")
SHAPES: dict[str, tuple[int, ...]] = {}


def test_every_family_is_held_to_the_contract() -> None:
    assert sorted(BUILDERS) == FAMILIES == ["cosmos", "longcat", "sana", "sd3", "wan"]


@pytest.fixture(scope="module", params=FAMILIES)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The family's module and a tiny pipeline of it; not to be changed."""
    name = request.param
    folder = tmp_path_factory.mktemp(name) / "pipeline"
    SHAPES[name] = build(name, folder)
    return find("models", name), folder


@pytest.fixture
def copied(original: tuple[Any, Path], tmp_path: Path) -> tuple[Any, Path]:
    """The same, to be spoilt."""
    family, folder = original
    shutil.copytree(folder, tmp_path / "pipeline")
    return family, tmp_path / "pipeline"


def shape_of(family: Any) -> tuple[int, ...]:
    return SHAPES[family.__name__.rsplit(".", 1)[1]]


def loud(denoiser: Denoiser) -> Denoiser:
    """Weights large enough that every part of the network matters."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(0, 0.2, generator=rng)
    return denoiser


def inputs(family: Any, folder: Path) -> tuple[Tensor, Tensor, Condition]:
    """States, angles from noise to data, conditions."""
    x = torch.randn(3, *shape_of(family), generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([torch.pi / 2, 0.8, 0.0]), family.load_codec(folder).encode_text(PROMPTS)


def test_the_folder_is_whole_and_says_what_it_needs(original: tuple[Any, Path]) -> None:
    family, folder = original
    family.check_folder(folder)
    network = family.load_network(folder)
    assert not network.training
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    found = {type(module).__name__ for module in network.modules()}
    assert family.blocks
    assert set(family.blocks) <= found  # the units of sharding are there


def test_the_velocity_is_finite_from_noise_to_data(original: tuple[Any, Path]) -> None:
    family, folder = original
    denoiser = loud(load_denoiser(folder, family))
    x, t, condition = inputs(family, folder)
    with torch.no_grad():
        F = denoiser(x, t, condition)
    assert F.shape == x.shape
    assert F.dtype == torch.float32
    assert F.isfinite().all()


def test_angles_in_float64_are_accepted_and_mean_the_same(original: tuple[Any, Path]) -> None:
    """Samplers and losses keep angles in float64; what comes out is float32 like the state."""
    family, folder = original
    denoiser = loud(load_denoiser(folder, family))
    x, t, condition = inputs(family, folder)
    with torch.no_grad():
        single, double = denoiser(x, t, condition), denoiser(x, t.double(), condition)
    assert double.dtype == torch.float32
    # a network time of up to 1000 is rounded to 6e-5 in float32, and embedded by cos and sin of it
    torch.testing.assert_close(double, single, rtol=1e-3, atol=1e-3)


def test_condition_state_and_angle_all_matter(original: tuple[Any, Path]) -> None:
    family, folder = original
    denoiser = loud(load_denoiser(folder, family))
    x, t, condition = inputs(family, folder)
    other = {name: value.roll(1, 0) for name, value in condition.items()}
    with torch.no_grad():
        F = denoiser(x, t, condition)
        # far above float32 rounding, so it is no accident of another kernel
        for changed in (
            denoiser(x, t, other),
            denoiser(x + 0.1, t, condition),
            denoiser(x, t + 0.1, condition),
        ):
            assert (changed[1] - F[1]).abs().max() > 1e-3


def test_samples_of_a_batch_do_not_see_each_other(original: tuple[Any, Path]) -> None:
    family, folder = original
    denoiser = loud(load_denoiser(folder, family))
    x, t, condition = inputs(family, folder)
    with torch.no_grad():
        together = denoiser(x, t, condition)
        alone = denoiser(x[1:2], t[1:2], {name: value[1:2] for name, value in condition.items()})
    # a batch of another size may take another matrix kernel: equal to float32 rounding
    torch.testing.assert_close(alone, together[1:2], rtol=1e-4, atol=1e-5)


def test_the_tangent_is_the_derivative(original: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward-mode AD through the unmodified module against central differences.

    In float64 all through: networks cast to float32 inside, and making that cast the identity changes no
    formula and lets differences be an oracle to seven digits instead of three.
    """
    cast = torch.Tensor.to

    def to(self: Tensor, *given: Any, **named: Any) -> Tensor:
        rounds = torch.float32 in (*given, named.get("dtype")) and self.dtype == torch.float64
        return self if rounds else cast(self, *given, **named)

    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    monkeypatch.setattr(torch.Tensor, "to", to)
    family, folder = original
    denoiser = loud(load_denoiser(folder, family)).double()
    x, _, condition = inputs(family, folder)
    # network times of up to 1000 make third derivatives in the angle large: small steps, angles inside
    x, t = x.double(), torch.tensor([1.2, 0.8, 0.3], dtype=torch.float64)
    condition = {name: value.double() for name, value in condition.items()}
    dx = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h = 1e-7

    def F(state: Tensor, angle: Tensor) -> Tensor:  # noqa: N802
        value: Tensor = denoiser(state, angle, condition)
        return value

    for tangents in ((dx, None), (None, torch.ones_like(t)), (dx, t.cos() * t.sin())):
        with torch.no_grad(), flash_jvp():
            value, found = jvp(F, (x, t), tangents)
        step_x, step_t = (0.0 if d is None else h * d for d in tangents)
        with torch.no_grad():
            expected = (F(x + step_x, t + step_t) - F(x - step_x, t - step_t)) / (2 * h)
            torch.testing.assert_close(value, F(x, t), rtol=1e-10, atol=1e-10)
        # rounding 1e-15 / h of values of order 10, and h^2 / 6 times a third derivative in the angle, which is up to
        # 1000^2 times the first: 1e-7 of the largest is what is seen
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, scale))


def test_a_network_written_by_us_is_loaded_again(original: tuple[Any, Path], tmp_path: Path) -> None:
    family, folder = original
    network = family.load_network(folder)
    write_network(tmp_path / "transformer", network, network.state_dict())
    again = family.load_network(tmp_path).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in network.state_dict().items())


def test_text_of_any_number_of_prompts_has_one_length(original: tuple[Any, Path]) -> None:
    family, folder = original
    codec = family.load_codec(folder)
    three, one = codec.encode_text(PROMPTS), codec.encode_text(PROMPTS[1:2])
    assert codec.length >= 1
    assert set(three) == set(one)
    for name, value in three.items():
        assert len(value) == 3
        assert value.isfinite().all()
        # another batch size may take another matrix kernel
        torch.testing.assert_close(one[name], value[1:2], rtol=1e-4, atol=1e-5)


def test_pixels_are_in_the_unit_interval(original: tuple[Any, Path]) -> None:
    family, folder = original
    latents = 3 * torch.randn(2, *shape_of(family), generator=torch.Generator().manual_seed(0))
    pixels = family.load_codec(folder).decode(latents)
    assert pixels.ndim == 5
    assert len(pixels) == 2
    assert pixels.min() >= 0
    assert pixels.max() <= 1


@pytest.mark.parametrize("damage", ["missing", "extra", "shape", "family", "header"])
def test_what_is_not_whole_is_refused_in_one_sentence(copied: tuple[Any, Path], damage: str) -> None:
    family, folder = copied
    (path,) = (folder / "transformer").glob("*.safetensors")
    weights = load_file(path)
    name = sorted(weights)[0]
    said = name
    if damage == "missing":
        del weights[name]
    elif damage == "extra":
        said = "another"
        weights["another"] = torch.zeros(3)
    elif damage == "shape":
        weights[name] = torch.zeros(1, 2, 3, 4, 5, 6)
    save_file(weights, path, metadata={"format": "pt"})
    if damage == "header":
        said = path.name
        path.write_bytes(b"\xff" + path.read_bytes()[1:])
    if damage == "family":
        said = "Transformer3000"
        config = folder / "transformer/config.json"
        config.write_text(config.read_text().replace(family.network_class, "Transformer3000"))
    with pytest.raises(InputError, match=said) as caught:
        family.check_folder(folder)
    assert "\n" not in str(caught.value)

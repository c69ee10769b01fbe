"""Contract of every file in rcm_core/models. Run this on your own family, too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BUILDERS, PROMPTS, build
from safetensors.torch import load_file, save_file
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.networks.denoiser import Denoiser, load_denoiser
from rcm_core.preflight.check_model import check_model
from rcm_core.protocols import Condition
from rcm_core.registry import available, find

FAMILIES = available("models")
SHAPES: dict[str, tuple[int, ...]] = {}


def test_every_family_is_held_to_the_contract() -> None:
    assert sorted(BUILDERS) == FAMILIES == ["cosmos", "longcat", "sana", "sd3", "wan"]


@pytest.fixture(scope="module", params=FAMILIES)
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The family's module and a tiny read-only pipeline of it."""
    name = request.param
    folder = tmp_path_factory.mktemp(name) / "pipeline"
    SHAPES[name] = build(name, folder)
    return find("models", name), folder


@pytest.fixture
def copied(original: tuple[Any, Path], tmp_path: Path) -> tuple[Any, Path]:
    """A copy of ``original`` that a test may damage."""
    family, folder = original
    shutil.copytree(folder, tmp_path / "pipeline")
    return family, tmp_path / "pipeline"


def shape_of(family: Any) -> tuple[int, ...]:
    return SHAPES[family.__name__.rsplit(".", 1)[1]]


def loud(denoiser: Denoiser) -> Denoiser:
    """Set weights so large that every part of the network matters."""
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(0, 0.2, generator=rng)
    return denoiser


def inputs(family: Any, folder: Path) -> tuple[Tensor, Tensor, Condition]:
    """Return states, angles from noise to data, and conditions."""
    x = torch.randn(3, *shape_of(family), generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([torch.pi / 2, 0.8, 0.0]), family.load_codec(folder).encode_text(PROMPTS)


def test_it_passes_every_check(original: tuple[Any, Path]) -> None:
    family, folder = original
    findings = list(check_model(family, folder, blocks=2, codec=True))
    assert [finding for finding in findings if not finding.passed] == []
    assert len(findings) == 12


def test_angles_in_float64_are_accepted_and_mean_the_same(original: tuple[Any, Path]) -> None:
    """Samplers and losses keep angles in float64; the output is float32 like the state."""
    family, folder = original
    denoiser = loud(load_denoiser(folder, family))
    x, t, condition = inputs(family, folder)
    with torch.no_grad():
        single, double = denoiser(x, t, condition), denoiser(x, t.double(), condition)
    assert double.dtype == torch.float32
    # a network time of up to 1000 is rounded to 6e-5 in float32, and embedded by cos and sin of it
    torch.testing.assert_close(double, single, rtol=1e-3, atol=1e-3)


def test_a_network_in_shards_is_whole_or_named(copied: tuple[Any, Path]) -> None:
    family, folder = copied
    weights = dict(family.load_network(folder).state_dict())
    network = family.load_network(folder)
    (folder / "transformer/diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(folder / "transformer", max_shard_size="40KB")
    shards = sorted((folder / "transformer").glob("*.safetensors"))
    assert len(shards) > 2
    family.check_folder(folder)
    again = family.load_network(folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    save_file({"stray": torch.zeros(1)}, folder / "transformer/other.fp16.safetensors")
    family.check_folder(folder)  # files that the index does not name are not the network's
    shards[1].rename(folder / "elsewhere")
    for load in (family.check_folder, family.load_network):
        with pytest.raises(
            InputError, match=f"lacks 1 of the {len(shards)} shards that its index names"
        ) as caught:
            load(folder)
        assert shards[1].name in str(caught.value)
    (folder / "transformer/diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="has no weight_map"):
        family.check_folder(folder)


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

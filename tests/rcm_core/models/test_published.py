"""The published networks, built on the meta device: as many parameters as published, and the family's names in them."""

from __future__ import annotations

import json

import pytest
from tiny import ROOT

from rcm_core.pipelines.folder import meta_network
from rcm_core.registry import available, find

PLACE = ROOT / "data/models"
NAMES = sorted(path.stem for path in PLACE.glob("*.json"))


def test_every_family_has_a_published_network() -> None:
    families = {json.loads((PLACE / f"{name}.json").read_text())["family"] for name in NAMES}
    assert families == set(available("models"))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    facts = json.loads((PLACE / f"{name}.json").read_text())
    family = find("models", facts["family"])
    assert facts["config"]["_class_name"] == family.network_class
    network = meta_network(family.network_class, facts["config"])
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == facts["parameters"]
    # publications round: 1.42 billion is called 1.3B, 6.27 is called 6B
    assert count == pytest.approx(float(facts["published"][:-1]) * 1e9, rel=0.1)
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert set(family.blocks) <= {type(module).__name__ for module in network.modules()}
    for layer in (family.last_layer, family.time_layer):
        assert layer is None or network.get_submodule(layer).out_features
    assert network.get_submodule(family.last_layer).in_features % 64 == 0


@pytest.mark.parametrize(
    ("name", "exactly"),
    [
        # what Stability's release and NVlabs/Sana's log say
        ("sd3-medium", 2_028_328_000),
        ("sana-1.6b", 1_604_462_752),
    ],
)
def test_counts_that_are_published_to_the_digit(name: str, exactly: int) -> None:
    assert json.loads((PLACE / f"{name}.json").read_text())["parameters"] == exactly

"""The kernels at sizes that take several tiles of the shipped configurations; in the interpreter that takes minutes."""

from __future__ import annotations

import gate
import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SHAPES = {
    "self": (1, 2, 2, 300, 300, 128, 128),
    "cross": (1, 2, 2, 300, 256, 64, 64),
    "whole": (1, 2, 2, 256, 512, 128, 128),
    "grouped": (2, 4, 2, 999, 777, 72, 72),
    "wide": (1, 1, 1, 200, 300, 256, 256),
}


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", ["plain", "additive", "lengths", "causal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_several_tiles_pass_the_gate(
    shape: str, name: str, kind: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gate.SHAPES, shape, SHAPES[shape])
    gate.check(shape, gate.options_of(shape, name), kind)

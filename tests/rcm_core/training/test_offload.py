"""Networks offloaded to CPU, one block at a time on the device: the same training, interrupted or not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from resumed import trained
from workspaces import configure

# diffusers returns a view; nothing changes it in place
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


def test_it_is_the_same_training_interrupted_or_not(workspace: Path, tmp_path: Path) -> None:
    plain = trained(workspace, tmp_path / "here", 12)
    configure(workspace, {"train.parallel.offload": ["teacher", "fake"]})
    whole = trained(workspace, tmp_path / "away", 12)
    parts = trained(workspace, tmp_path / "interrupted", 8, 12)
    assert plain.keys() == whole.keys() == parts.keys()
    for name, value in plain.items():
        assert torch.equal(whole[name], parts[name]), name
        # norms of sharded gradients are summed in another order, and all networks are sharded if one lies elsewhere
        torch.testing.assert_close(whole[name], value, rtol=0, atol=1e-5, msg=name)

"""Batches are functions of the step, independent of rank and order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from rcm_core.benchmarks import digits
from rcm_core.data.loaders import DrawnSource, ImageSource, Order, TrajectorySource
from rcm_core.data.trajectory_store import Store
from rcm_core.storage.run_folder import RunFolder

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 7, 64])
def test_an_epoch_is_every_sample_once(count: int) -> None:
    order = Order(count, seed=3)
    for epoch in range(3):
        assert sorted(order.indices(epoch * count, count)) == list(range(count))
    across = order.indices(count - 1, 2 * count)
    assert across == [order.indices(p, 1)[0] for p in range(count - 1, 3 * count - 1)]


def test_epochs_and_seeds_differ() -> None:
    first, second = Order(100, 0).indices(0, 100), Order(100, 0).indices(100, 100)
    assert first != second
    assert first != Order(100, 1).indices(0, 100)
    assert first == Order(100, 0).indices(0, 100)


def test_parts_make_up_the_batch_however_it_is_cut(tiny_run: Path, tmp_path: Path) -> None:
    """Two accumulation steps, or two ranks, or two of each, see the samples that one rank sees at once.

    Only the samples: noise and angles are drawn per part, so 1 x 8 is not the same training as 2 x 4; 2 ranks
    and 2 accumulation steps have the same parts and are (tests/system/test_training.py).
    """
    source = TrajectorySource(Store(tiny_run / "runs/trajectories", tmp_path), 8, 0, CPU, frozenset())
    for step in (0, 3, 17):  # 17 x 8 wraps round the 40 samples
        whole = source.batch(step, 0, 8)
        for parts in (2, 4):
            pieces = [source.batch(step, part, 8 // parts) for part in range(parts)]
            assert torch.equal(torch.cat([p.x0 for p in pieces]), whole.x0)
            text = torch.cat([p.condition["text"] for p in pieces])
            assert torch.equal(text, whole.condition["text"])
        assert len(whole.negative["text"]) == 1


def test_a_batch_holds_samples_with_their_own_conditions(tiny_run: Path, tmp_path: Path) -> None:
    store = Store(tiny_run / "runs/trajectories", tmp_path)
    source = TrajectorySource(store, 8, 0, CPU, frozenset())
    known = {
        store.sample(i)["x0"].numpy().tobytes(): store.sample(i)["condition.text"] for i in range(len(store))
    }
    seen: Counter[bytes] = Counter()
    for step in range(5):
        batch = source.batch(step, 0, 8)
        for x0, text in zip(batch.x0, batch.condition["text"]):
            assert torch.equal(known[x0.numpy().tobytes()], text)
            seen[x0.numpy().tobytes()] += 1
    assert set(seen.values()) == {1}  # 5 x 8 = one epoch over the 40
    assert len(seen) == 40


def test_images_come_with_prompts_that_name_them(tiny_run: Path) -> None:
    prompts = RunFolder.of(tiny_run).prompts("train")
    images, labels = digits.images("train")
    named = torch.tensor([digits.label(p) for p in prompts])
    choices = [torch.nonzero(named == label).flatten() for label in labels]
    table = {"row": torch.arange(len(prompts))}
    source = ImageSource(images, choices, table, table, batch=32, seed=0)
    whole = source.batch(4, 0, 32)
    for x0, row in zip(whole.x0, whole.condition["row"]):
        label = labels[(images == x0).flatten(1).all(1).nonzero()[0]]
        assert digits.label(prompts[int(row)]) == int(label)
    again = source.batch(4, 0, 32)
    assert torch.equal(whole.condition["row"], again.condition["row"])
    assert len(set(whole.condition["row"].tolist())) > 10  # several phrasings, not one per digit


def test_drawn_images_belong_to_their_prompts_however_the_batch_is_cut() -> None:
    labels = [0, 1, 1, 0, 2, 1, 2]
    groups = [[row for row, label in enumerate(labels) if label == wanted] for wanted in range(3)]
    table = {"row": torch.arange(len(labels))}

    def draw(row: int, rng: torch.Generator) -> torch.Tensor:
        return row + torch.rand(3, generator=rng)

    source = DrawnSource(draw, groups, table, {"row": torch.tensor([-1])}, batch=12, seed=0)
    whole = source.batch(5, 0, 12)
    parts = [source.batch(5, part, 4) for part in range(3)]
    assert torch.equal(torch.cat([part.x0 for part in parts]), whole.x0)
    assert torch.equal(torch.cat([part.condition["row"] for part in parts]), whole.condition["row"])
    assert torch.equal(whole.x0.floor()[:, 0].long(), whole.condition["row"])
    assert [labels[row] for row in whole.condition["row"].tolist()] == [0, 1, 2] * 4  # labels take turns
    assert not torch.equal(source.batch(6, 0, 12).x0, whole.x0)

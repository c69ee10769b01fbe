"""Contract of every benchmark module and its prompt lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rcm_core.errors import InputError
from rcm_core.protocols import Benchmark
from rcm_core.registry import available, find, find_benchmark
from rcm_core.scenes.scans import SPLIT_SIZES, scans

ROOT = Path(__file__).parents[3]
LISTS = {
    "digits": "digits",
    "moving_digits": "moving-digits",
    "scenes": "scenes",
    "scenes_video": "scenes-video",
}
CLASSED = ("digits", "moving_digits")
"""Benchmarks with one class per prompt, all equally frequent."""
SPLITS = tuple(SPLIT_SIZES)


def prompts(name: str, split: str) -> list[str]:
    return (ROOT / "data" / "prompts" / LISTS[name] / f"{split}.txt").read_text().splitlines()


def test_lists_stand_beside_every_data_module() -> None:
    assert available("benchmarks") == sorted([*LISTS, "open"])  # it has only prompts


@pytest.mark.parametrize("name", available("benchmarks"))
def test_every_benchmark_has_all_that_the_protocol_names(name: str) -> None:
    benchmark = find_benchmark(name)
    members = {*Benchmark.__annotations__, "label", "images", "compose_split"}
    assert members <= vars(benchmark).keys()
    assert len(benchmark.emphasis) == benchmark.classes
    assert benchmark.judge in ("classifier", "scenes", "motion", "open")
    if benchmark.judge == "open":
        with pytest.raises(InputError, match="'open' has no test images"):
            benchmark.images("test")


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("split", SPLITS)
def test_images_are_in_range_and_cover_every_class(name: str, split: str) -> None:
    source = find("benchmarks", name)
    pixels, labels = source.images(split)
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert pixels.ndim == 5
    assert len(pixels) == len(labels)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert labels.unique().tolist() == list(range(source.classes))


@pytest.mark.parametrize("name", LISTS)
def test_images_are_the_callers_own(name: str) -> None:
    source = find("benchmarks", name)
    before = source.images("test")[0]
    source.images("test")[0].zero_()
    assert torch.equal(source.images("test")[0], before)


def test_splits_hold_every_scan_once() -> None:
    from sklearn.datasets import load_digits

    rows = torch.cat([scans(split)[0] for split in SPLITS]).flatten(1)
    whole = torch.from_numpy(load_digits().data / 8 - 1).float()
    assert [len(scans(split)[0]) for split in SPLITS] == list(SPLIT_SIZES.values())
    assert torch.equal(rows.sort(0).values, whole.sort(0).values)
    assert len({row.numpy().tobytes() for row in rows}) == len(rows)


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_stratified(split: str) -> None:
    counts = scans(split)[1].bincount(minlength=10)
    # the rarest digit has 174 of 1,797 scans and the commonest 183; stratified rounding adds at most one
    share = len(scans(split)[1]) / 1797
    assert counts.min() >= 174 * share - 1
    assert counts.max() <= 183 * share + 1


def test_clips_move_one_scan_across_the_canvas() -> None:
    pixels, labels = find("benchmarks", "moving_digits").images("validation")
    single, digits = scans("validation")
    assert pixels.shape == (2 * len(single), 1, 5, 8, 12)
    for frame in range(5):
        assert torch.equal(pixels[0::2, 0, frame, :, frame : frame + 8], single)
        assert torch.equal(pixels[1::2, 0, frame], pixels[0::2, 0, 4 - frame])
    assert torch.equal(labels // 2, digits.repeat_interleave(2))
    assert torch.equal(labels % 2, torch.tensor([0, 1]).repeat(len(single)))


@pytest.mark.parametrize("name", CLASSED)
def test_prompt_splits_are_disjoint_balanced_and_short(name: str) -> None:
    source = find("benchmarks", name)
    everything = [prompt for split in SPLITS for prompt in prompts(name, split)]
    assert len(set(everything)) == len(everything) == 1200
    assert max(len(prompt.split()) for prompt in everything) <= 10
    for split, count in zip(SPLITS, (1000, 100, 100)):
        labels = [source.label(prompt) for prompt in prompts(name, split)]
        assert labels == [i % source.classes for i in range(count)]


@pytest.mark.parametrize("name", LISTS)
def test_train_prompts_hold_every_word_and_the_example(name: str) -> None:
    known = {word for prompt in prompts(name, "train") for word in prompt.split()}
    assert {word for split in SPLITS for prompt in prompts(name, split) for word in prompt.split()} == known
    if name in CLASSED:
        assert any(prompt.startswith("a handwritten seven") for prompt in prompts(name, "train"))


def test_labels_read_words_and_numerals() -> None:
    digits, moving = find("benchmarks", "digits"), find("benchmarks", "moving_digits")
    assert (
        digits.label("A handwritten Seven") == digits.label("the digit 7") == digits.label("7, seven!") == 7
    )
    assert moving.label("the digit 3 moving left") == 7
    assert moving.label("a three that goes to the right") == 6


@pytest.mark.parametrize("prompt", ["", "a cat", "a 3 and a 4", "the number 17", "someone"])
def test_prompt_without_one_digit_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="name exactly one") as error:
        find("benchmarks", "digits").label(prompt)
    assert repr(prompt) in str(error.value)


@pytest.mark.parametrize("prompt", ["the digit 3", "a 3 moving left then right", "a bright 3"])
def test_prompt_without_one_direction_is_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="moving right"):
        find("benchmarks", "moving_digits").label(prompt)


def test_unknown_split_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'train'"):
        find("benchmarks", "digits").images("trian")

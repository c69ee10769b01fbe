"""Prompt files as people write them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from rcm_core.errors import InputError
from rcm_core.prompts import by_label, cycle, load_split, read_prompts, refuse_overlap


def test_lines_are_stripped_and_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("  the digit 7 \n\n\tzwölf Äpfel\r\nthe digit 3", encoding="utf-8")
    assert read_prompts(path) == ["the digit 7", "zwölf Äpfel", "the digit 3"]


@pytest.mark.parametrize("column", ["prompt", "text", "caption"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_of_a_table_is_a_list_of_prompts(tmp_path: Path, kind: str, column: str) -> None:
    """Commas, quotes, numbers and what looks like a missing value are texts; empty ones are left out, as lines are."""
    path = tmp_path / f"train.{kind}"
    frame = pd.DataFrame({"id": [1, 2, 3, 4], column: [' a "red", big\n seven', "7", "NA", ""]})
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    else:
        frame.to_parquet(path)
    assert read_prompts(path) == ['a "red", big seven', "7", "NA"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.csv",
            b"id,name\n1,x\n",
            r"has the columns id, name; call the one with the texts prompt or text or caption",
        ),
        ("a.csv", b"prompt\n\n", "is empty"),
        ("a.csv", b"prompt\nseven\nseven\n", "holds 'seven' twice"),
        ("a.csv", b"prompt\n\xff\n", r"is not a \.csv table"),
        ("a.jsonl", b'{"prompt": "seven"}\n{"prompt": ', r"is not a \.jsonl table"),
        ("a.jsonl", b'{"prompt": 7}\n', r"has 7 in the column prompt; expected texts"),
        ("a.parquet", b"PAR1", r"is not a \.parquet table"),
    ],
)
def test_a_table_that_will_not_do_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"prompt file {tmp_path / name} {said}") as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist; write one prompt per line"),
        (b"", "is empty; write at least one prompt"),
        (b" \n\t\n", "is empty"),
        (b"the digit 7\nthe digit 3\n the digit 7\n", "holds 'the digit 7' twice; remove one"),
        (b"the digit \xff", "is not UTF-8 text .*save it as UTF-8"),
    ],
)
def test_a_file_that_will_not_do_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "train.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"prompt file {path} {said}") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path)


def test_splits_share_no_prompt_however_it_is_written() -> None:
    refuse_overlap({"train": ["a seven"], "validation": ["a 7"], "test": ["the digit 7"]})
    with pytest.raises(InputError, match=r"'A  Seven' stands in both train and test; .*remove it from one"):
        refuse_overlap({"train": ["a seven"], "validation": ["a 7"], "test": ["A  Seven"]})


def test_a_split_is_read_back_in_order(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"prompts\.parquet does not exist; make it with `dvc repro prompts`"
    ):
        load_split(tmp_path, "train")
    (tmp_path / "runs/prompts").mkdir(parents=True)
    rows = [("train", "b"), ("test", "c"), ("train", "a")]
    frame = pd.DataFrame(rows, columns=["split", "prompt"])
    frame.to_parquet(tmp_path / "runs/prompts/prompts.parquet")
    assert load_split(tmp_path, "train") == ["b", "a"]


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_every_prompt_comes_as_often_as_any_other(count: int) -> None:
    found = cycle(["a", "b", "c"], count)
    assert len(found) == count
    often = Counter({"a": 0, "b": 0, "c": 0}) | Counter(found)
    assert max(often.values()) - min(often.get(p, 0) for p in "abc") <= 1


def test_prompts_by_label() -> None:
    prompts = ["one", "two", "a one"]
    label = {"one": 1, "two": 2, "a one": 1}.__getitem__
    assert by_label(prompts, label, [1, 2, 2]) == {1: [0, 2], 2: [1]}
    with pytest.raises(InputError, match="no training prompt names the images of label 0"):
        by_label(prompts, label, [0, 1])

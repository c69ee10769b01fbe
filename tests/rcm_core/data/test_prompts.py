"""Prompt files of users."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from rcm_core.data.prompts import by_label, clean_text, cycle, read_prompts, refuse_overlap
from rcm_core.errors import InputError
from rcm_core.storage.formats import parse_json_lines
from rcm_core.storage.run_folder import RunFolder


def test_lines_are_stripped_and_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_text("  the digit 7 \n\n\tzwölf Äpfel\r\nthe digit 3", encoding="utf-8")
    assert read_prompts(path) == ["the digit 7", "zwölf Äpfel", "the digit 3"]


def test_marks_and_separators_of_other_programs_are_no_part_of_a_prompt(tmp_path: Path) -> None:
    """A line ends where an editor ends it, and nowhere else."""
    odd = "\ufeffa\u2028red\u2029seven\r\na\x85blue\x0c six\ra\x0bgreen\x1cfive\n\ufeffa four\n"
    expected = ["a red seven", "a blue six", "a green five", "a four"]
    (tmp_path / "a.txt").write_bytes(odd.encode())
    assert read_prompts(tmp_path / "a.txt") == expected
    table = pd.DataFrame({"prompt": ["a\u2028red seven", "a\x85blue six"]})
    for kind in ("csv", "jsonl"):
        content = table.to_csv(index=False) if kind == "csv" else table.to_json(orient="records", lines=True)
        (tmp_path / f"a.{kind}").write_bytes(b"\xef\xbb\xbf" + content.encode())
        assert read_prompts(tmp_path / f"a.{kind}") == expected[:2]


def test_repeated_prompts_are_found_in_linear_time(tmp_path: Path) -> None:
    """It would take more than a minute if every prompt were compared with all earlier ones."""
    path = tmp_path / "train.txt"
    lines = [f"prompt number {i}" for i in range(100_000)]
    path.write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(InputError, match="holds 'prompt number 99999' twice"):
        read_prompts(path)


def test_one_prompt_is_too_few_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("the digit 7\n")
    assert read_prompts(tmp_path / "train.txt") == ["the digit 7"]
    with pytest.raises(InputError, match="has 1 prompt, expected at least 2 to train on"):
        read_prompts(tmp_path / "train.txt", 2)


def test_what_the_pipelines_clean_is_in_none_of_our_own_prompts() -> None:
    """Cleaning therefore changes no result of the embedded teachers."""
    files = sorted((Path(__file__).parents[3] / "data/prompts").rglob("*.txt"))
    assert len(files) >= 12
    for path in files:
        prompts = read_prompts(path)
        assert prompts == [line for line in path.read_text().splitlines() if line]
        assert [prompt_clean(prompt) for prompt in prompts] == prompts


@pytest.mark.parametrize("column", ["prompt", "text", "caption"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_of_a_table_is_a_list_of_prompts(tmp_path: Path, kind: str, column: str) -> None:
    """Commas, quotes, numbers and apparent missing values are text; empty texts are skipped, as empty lines are."""
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
        ("a.csv", b"prompt\n\xff\n", "is not UTF-8 text"),
        ("a.jsonl", b'{"prompt": "seven"}\n{"prompt": ', "line 2 is not JSON .*mend that line"),
        ("a.jsonl", b'{"prompt": "seven"}\n["six"]', "line 2 holds a list; expected a JSON object"),
        ("a.jsonl", b'{"prompt": "seven", "prompt": "six"}\n', "line 1 is not JSON .*stands there twice"),
        ("a.jsonl", b'{"prompt": "\\ud800"}\n', "line 1 is not JSON .*surrogates not allowed"),
        ("a.jsonl", b'{"\\udfff": 1, "prompt": "seven"}\n', "line 1 is not JSON .*surrogates not allowed"),
        ("a.csv", b"prompt\n\xed\xa0\x80\n", "is not UTF-8 text"),
        ("a.jsonl", b'{"prompt": 7}\n', r"has 7 in the column prompt; expected texts"),
        ("a.csv", b"prompt,id\na cat, a dog,1\n", "line 2 has 3 fields, expected 2 .*double quotes"),
        ("a.csv", b"id,prompt\n1\n", "line 2 has 1 fields, expected 2"),
        ("a.csv", b"prompt,prompt\na,b\n", "has two columns of one name"),
        ("a.csv", b'prompt\n"a\n', r"is not a \.csv table \(line 2"),
        ("a.parquet", b"PAR1", "is not a Parquet table"),
    ],
)
def test_a_table_that_will_not_do_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"prompt file {tmp_path / name}:? {said}") as caught:
        read_prompts(tmp_path / name)
    assert "\n" not in str(caught.value)


def parquet_texts(*texts: bytes) -> pa.Array:
    """Return a column of texts whose bytes may be invalid UTF-8."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"prompt": parquet_texts(b"\xed\xa0\x80", b"seven")}, "is not a Parquet table .*Invalid UTF8"),
        ({"id": parquet_texts(b"\xff", b"a"), "prompt": ["a", "b"]}, "is not a Parquet table .*Invalid UTF8"),
        ({"prompt": [["a", "b"], ["c", "d"]]}, "has array.* in the column prompt; expected texts"),
        ({"prompt": [b"a", b"b"]}, "has b'a' in the column prompt; expected texts"),
    ],
)
def test_texts_of_a_parquet_table_are_texts(tmp_path: Path, columns: dict[str, Any], said: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=said):
        read_prompts(tmp_path / "a.parquet")


def test_halves_of_surrogate_pairs_are_no_text() -> None:
    """A shell passes them for bytes that are not UTF-8, too; a whole pair in JSON is one character."""
    with pytest.raises(
        InputError, match=r"--prompt has half of a surrogate pair, U\+D800; write it as UTF-8"
    ):
        clean_text("a \ud800", "--prompt")
    with pytest.raises(InputError, match=r"U\+DCFF"):
        clean_text(os.fsdecode(b"sept \xff"), "--prompt")
    assert parse_json_lines('{"prompt": "\\ud83d\\ude00"}', "", "")["prompt"].tolist() == ["\U0001f600"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist; write one prompt per line"),
        (b"", "is empty; write at least one prompt"),
        (b" \n\t\n", "is empty"),
        (b"the digit 7\nthe digit 3\n the digit 7\n", "holds 'the digit 7' twice; remove one"),
        (b"seven\n\nthe digit \x00", r"line 3 has the control character U\+0000; write it"),
        (b"seven\n" + 10_001 * b"a", r"line 2 has 10,001 characters, expected at most 10,000"),
        ("the digit 7".encode("utf-16"), "is not UTF-8"),
        (b"the digit \xff", "is not UTF-8 text .*save it as UTF-8"),
    ],
)
def test_a_file_that_will_not_do_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "train.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"prompt file {path}:? {said}") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_prompt_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prompts(tmp_path)


def test_splits_share_no_prompt_however_it_is_written() -> None:
    refuse_overlap({"train": ["a seven"], "validation": ["a 7"], "test": ["the digit 7"]})
    with pytest.raises(InputError, match=r"'A  Seven' is in both train and test; .*remove it from one"):
        refuse_overlap({"train": ["a seven"], "validation": ["a 7"], "test": ["A  Seven"]})


def test_a_split_is_read_back_in_order(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"prompts\.parquet does not exist; make it with `dvc repro prompts`"
    ):
        RunFolder.of(tmp_path).prompts("train")
    (tmp_path / "runs/prompts").mkdir(parents=True)
    rows = [("train", "b"), ("test", "c"), ("train", "a")]
    frame = pd.DataFrame(rows, columns=["split", "prompt"])
    frame.to_parquet(tmp_path / "runs/prompts/prompts.parquet")
    assert RunFolder.of(tmp_path).prompts("train") == ["b", "a"]


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

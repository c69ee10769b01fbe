"""The report of a small synthetic run: complete, self-contained, escaped, deterministic."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from reports import PROMPTS, Page, about, made_up_health, made_up_run

from rcm_core.errors import InputError
from rcm_core.evaluation.report.formatting import duration, number, per_sample
from rcm_core.evaluation.report.page import render
from rcm_core.evaluation.report.samples import picture, spread
from rcm_core.evaluation.teacher_features import IMPORTED
from rcm_core.monitoring.early_stopping import StopDecision
from rcm_core.storage.files import write_json
from rcm_core.storage.run_folder import RunFolder

TITLE = "A <b>made-up</b> & tested run"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return made_up_run(tmp_path / "runs", (1, 1, 8, 8), PROMPTS)


def test_what_stands_for_the_teacher_is_said(runs: Path) -> None:
    metrics = json.loads((runs / "evaluate/metrics.json").read_text())
    for name, row in metrics.items():
        if name != "protocol":
            del row["frechet"]  # no real images
    for protocol, words in (({}, "the teacher's samples"), ({"reference": IMPORTED}, IMPORTED)):
        write_json(runs / "evaluate/metrics.json", metrics | {"protocol": metrics["protocol"] | protocol})
        text = " ".join(" ".join(Page(render(RunFolder(runs), TITLE, 1)).text).split())
        for said in (
            f"Fréchet distance to {words}, 1 step",
            f"Against {words} and held-out prompts",
            f"to {words}",
        ):
            assert said in text
        assert (IMPORTED in text) == bool(protocol)


def test_categories_have_a_table_where_there_are_some(runs: Path) -> None:
    assert "Accuracy by category" not in render(RunFolder(runs), TITLE, 6)
    metrics = json.loads((runs / "evaluate/metrics.json").read_text())
    for key, row in metrics.items():
        if key != "protocol":
            row["accuracy_counting"], row["accuracy_mean"] = about(0.71, 0.02), about(0.8125, 0.02)
            row["motion_following"] = about(0.625, 0.02)
    write_json(runs / "evaluate/metrics.json", metrics)
    page = Page(render(RunFolder(runs), TITLE, 6))
    assert page.open == []
    text = " ".join(" ".join(page.text).split())
    for words in ("Accuracy by category", "counting", "mean", "motion following"):
        assert words in text
    for value, width in (("0.710", "0.690 – 0.730"), ("0.625", "0.605 – 0.645")):
        assert text.count(f"{value} {width}") == 5  # once for every sampler


def test_page_is_well_formed_and_says_what_it_must(runs: Path) -> None:
    page = Page(render(RunFolder(runs), TITLE, 6))
    text = " ".join(" ".join(page.text).split())
    assert page.open == []
    for words in (
        TITLE, "the digit 5", "needs 1, 2 or 4",
        "Teacher, 50 steps", "Student, 1 step", "Not distilled, 1 step", "100", "1.03",
        "95 %", "step_000900-ema_0.05", "chosen", "5f" * 32, "c0" * 32, "60 samples for 6 held-out prompts.",
        "Apache-2.0", "0123abc" * 5, "2.13.0", "student_every", "1.5, 1.2, 0.8, 0.5",
        "3 min 52 s", "700 MiB", "Tangent norm",
    ):  # fmt: skip
        assert words in text, words
    assert len(page.pictures) == 6 * 5 * 4


def text_of(runs: Path) -> str:
    return " ".join(" ".join(Page(render(RunFolder(runs), TITLE, 1)).text).split())


def test_a_training_to_the_end_says_what_was_noticed_and_warns_of_nothing(runs: Path) -> None:
    text = text_of(runs)
    assert "Training stopped" not in text
    assert "Samples left out as not finite: 0." in text
    assert "spiked" not in text
    assert "0.004 before the first iteration, 0.0004 at 900." in text
    changed = {"step_downs": [{"step": 70, "from": "exact", "to": "semi"}], "nonfinite": 1234}
    spikes = {"tangent_norm": 12, "gradient_norm": 1}
    write_json(runs / "train/health.json", made_up_health(**changed, spikes=spikes))
    text = text_of(runs)
    assert "Samples left out as not finite: 1,234. The gradient norm spiked in 1 iteration." in text
    assert "The tangent norm spiked in 12 iterations. At iteration 70 the tangent stepped down from" in text


def test_an_early_stop_is_one_clear_line(runs: Path) -> None:
    plateau = StopDecision(
        "plateau", 600, 600, "the validation score has not improved for 3 probes (best 0.1 at step 300)"
    )
    write_json(runs / "train/health.json", made_up_health(plateau))
    line = (
        "Training stopped at step 600 of 900: the validation score has not improved for 3 probes (best 0.1 at step"
        " 300)."
    )
    assert text_of(runs).count(line) == 1


def test_a_collapse_is_said_at_the_top_too(runs: Path) -> None:
    lost = StopDecision("collapse", 600, 300, "the score was 0.9 & <not> good")
    write_json(runs / "train/health.json", made_up_health(lost))
    html = render(RunFolder(runs), TITLE, 1)
    line = (
        "Training stopped at step 600 of 900 because the student collapsed: the score was 0.9 & <not> good."
    )
    assert text_of(runs).count(line) == 2
    assert html.index('class="notice"') < html.index('class="cards"')
    assert "<not>" not in html


def test_page_fetches_nothing(runs: Path) -> None:
    html = render(RunFolder(runs), TITLE, 3)
    page = Page(html)
    assert all(source.startswith("data:image/") for source in page.pictures)
    assert all(link.startswith("#") for link in page.links)
    without_data = re.sub(r'"data:[^"]*"', "", html)
    assert not re.search(r"(https?:)?//[\w.]+\.\w|@import|url\((?!#)|<script|<link", without_data)


def test_page_is_a_function_of_its_files(runs: Path, tmp_path: Path) -> None:
    again = made_up_run(tmp_path / "again", (1, 1, 8, 8), PROMPTS)
    assert render(RunFolder(runs), TITLE, 4) == render(RunFolder(again), TITLE, 4)


def test_text_of_a_run_is_never_markup(tmp_path: Path) -> None:
    attack = '"><script>alert(1)</script>'
    runs = made_up_run(tmp_path / "runs", (1, 1, 8, 8), [attack] * 4)
    html = render(RunFolder(runs), attack, 1)
    assert "<script" not in html
    assert attack in " ".join(Page(html).text)


def test_clips_move(tmp_path: Path) -> None:
    runs = made_up_run(tmp_path / "runs", (3, 5, 8, 12), ["a red 3 moving left"] * 4)
    pictures = Page(render(RunFolder(runs), "clips", 1)).pictures
    clip = Image.open(BytesIO(base64.b64decode(pictures[0].removeprefix("data:image/gif;base64,"))))
    assert clip.n_frames == 5
    assert clip.size == (48, 32)


def test_prompts_are_spread_over_a_regular_list() -> None:
    shown = spread(
        [f"{digit} {way}" for digit in range(10) for way in ("right", "left") for _ in range(3)], 10
    )
    assert [words[0] for words in shown] == list("0123456789")
    assert {words[2:] for words in shown} == {"right", "left"}
    assert spread(["a", "b"], 5) == ["a", "b"]


def test_small_pictures_are_enlarged_exactly_and_large_ones_shrunk() -> None:
    pixels = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
    image = np.asarray(Image.open(BytesIO(base64.b64decode(picture(pixels).split(",")[1]))))
    assert image.shape == (32, 32)
    assert np.array_equal(image[::4, ::4], (pixels[0, 0] * 255).round().byte().numpy())
    assert np.array_equal(image, image[::4, ::4].repeat(4, 0).repeat(4, 1))
    large = Image.open(BytesIO(base64.b64decode(picture(torch.rand(3, 1, 400, 200)).split(",")[1])))
    assert large.size == (96, 192)


def test_training_without_curves_is_said(runs: Path) -> None:
    (runs / "train/curves.csv").write_text("step,loss,tangent_norm,nonfinite,fake_loss,dmd_gradient\n")
    assert "Training logged no curves" in render(RunFolder(runs), TITLE, 1)


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("teacher/teacher.json", "teacher"), ("train/curves.csv", "train"),
        ("select/selection.json", "select"), ("evaluate/metrics.json", "evaluate"),
        ("evaluate/samples/student_2.safetensors", "evaluate"),
    ],
)  # fmt: skip
def test_a_missing_file_is_named_with_the_stage_that_makes_it(runs: Path, name: str, stage: str) -> None:
    (runs / name).unlink()
    with pytest.raises(InputError, match=f"{Path(name).name}.*dvc repro {stage}"):
        render(RunFolder(runs), TITLE, 1)


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all"])
def test_damaged_samples_are_named(runs: Path, damage: bytes) -> None:
    (runs / "evaluate/samples/teacher.safetensors").write_bytes(damage)
    with pytest.raises(InputError, match=r"teacher\.safetensors.*dvc repro -f evaluate"):
        render(RunFolder(runs), TITLE, 1)


def test_samples_of_other_prompts_are_refused(runs: Path) -> None:
    write_json(runs / "evaluate/samples/prompts.json", ["the digit 1"])
    with pytest.raises(InputError, match="for 1 prompts"):
        render(RunFolder(runs), TITLE, 1)


def test_numbers_are_readable() -> None:
    shown = [number(v) for v in (0, 0.00012, 0.0123, 0.5, 1.234, 45.67, 1234.5, 1e7)]
    assert shown == ["0.000", "0.00012", "0.0123", "0.500", "1.23", "45.7", "1,234", "1.00e+07"]
    assert [per_sample(s) for s in (2.0, 0.0512, 4e-5)] == ["2.00 s", "51.2 ms", "40.0 µs"]
    assert [duration(s) for s in (4.25, 65, 3725)] == ["4.2 s", "1 min 05 s", "1 h 02 min"]

"""The command ``rcm``: fast help, one sentence for bad input, readable pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from infra.cli import collect_prompts
from infra.commands.save_samples import contact_sheet, save_each, save_samples
from infra.commands.summary import cell
from infra.prefect.local import complaint
from rcm_core.data.prompts import read_prompts
from rcm_core.errors import InputError, OutageError


def rcm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "rcm"), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys, infra.cli; "
        "sys.exit(str({'torch', 'ray', 'prefect', 'dvc', 'pandas', 'numpy'} & set(sys.modules) or ''))"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert answer.stderr.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill"], "is not an rcm-distill project"),
        (["sample", "--out", "a.png"], "no prompt; give --prompt"),
        (
            ["sample", "--out", "a.png", "--prompts-file", "none.txt"],
            "--prompts-file none.txt does not exist",
        ),
        (["sample", "--out", "a.png", "--prompt", "a seven"], "runs/publish/pipeline does not exist"),
        (
            ["sample", "--out", "a.png", "--prompt", "a \udcff"],
            "--prompt has half of a surrogate pair, U+DCFF",
        ),
        (["sample", "--out", "a.png", "--prompt", "a\x07b"], "--prompt has the control character U+0007"),
        (["tune-times"], "params.yaml does not exist"),
        (["run", "trian"], "unknown stage 'trian' (did you mean 'train'?)"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    answer = rcm(*arguments, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert sentence in answer.stderr
    assert answer.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_prompts_of_rcm_sample_are_cleaned_as_those_of_the_stages(tmp_path: Path) -> None:
    """The same text has the same embedding, whether it comes from the command line or from a file."""
    odd = "\ufeff a\u2028red\x0cseven\x85 "
    (tmp_path / "a.txt").write_text(f"{odd}\n\n a  blue\tsix\n", encoding="utf-8")
    assert collect_prompts([odd], tmp_path / "a.txt") == ["a red seven", "a red seven", "a blue six"]
    assert read_prompts(tmp_path / "a.txt") == ["a red seven", "a blue six"]
    with pytest.raises(InputError, match="--prompt is empty"):
        collect_prompts(["\ufeff\u2028"], None)


def test_doctor_names_versions_devices_and_remedies() -> None:
    answer = rcm("doctor", cwd=Path(__file__).parents[2])
    assert answer.returncode == 0, answer.stderr
    for subject in ("torch", "gpu", "attention tangents", "prefect server", "dvc project", "s3"):
        assert subject in answer.stdout


def test_a_picture_shows_every_sample_enlarged(tmp_path: Path) -> None:
    pixels = torch.rand(3, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    save_samples(pixels, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (512, 512)
        # every source pixel is a block of 32 x 32; sample 2 is below sample 0
        expected = (pixels[2, 0, 0, 7, 7] * 255).round()
        assert picture.getpixel((255, 511)) == int(expected)


def test_clips_become_moving_pictures(tmp_path: Path) -> None:
    save_samples(torch.linspace(0, 1, 5).view(1, 1, 5, 1, 1).expand(1, 3, 5, 8, 8), tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as clip:
        assert clip.n_frames == 5


def test_clips_become_a_video_that_players_read(tmp_path: Path) -> None:
    clip = torch.linspace(0.1, 0.9, 5).view(1, 1, 5, 1, 1).expand(1, 1, 5, 7, 9)
    save_samples(clip, tmp_path / "a.mp4")
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-i",
        str(tmp_path / "a.mp4"),
        "-f",
        "rawvideo",
        "-pix_fmt",
        "gray",
        "-",
    ]
    read = subprocess.run(command, capture_output=True, check=True)
    said = read.stderr.decode()
    assert "h264" in said
    assert "262x204" in said  # 9 x 29 and 7 x 29, made even
    assert "16 fps" in said
    means = np.frombuffer(read.stdout, np.uint8).reshape(-1, 262 * 204).mean(1).tolist()
    # H.264 in 8 bits of limited range: within two levels
    assert means == pytest.approx([255 * v for v in (0.1, 0.3, 0.5, 0.7, 0.9)], abs=2)


def test_a_folder_has_a_file_for_every_sample(tmp_path: Path) -> None:
    images = torch.rand(3, 3, 1, 8, 8)
    assert save_each(images.split(2), tmp_path / "images") == 3
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert save_each([torch.rand(1, 1, 2, 8, 8)], tmp_path / "clips") == 1
    assert [p.name for p in (tmp_path / "clips").iterdir()] == ["00000.mp4"]


def test_a_video_without_its_package_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match=r"pip install 'rcm-distill\[video\]', or name a \.gif file"):
        save_samples(torch.zeros(1, 1, 2, 8, 8), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("frames", "name"), [(1, "a.gif"), (5, "a.png"), (1, "a")])
def test_a_suffix_that_does_not_fit_is_refused(tmp_path: Path, frames: int, name: str) -> None:
    with pytest.raises(InputError, match=f"generates {frames} frame"):
        save_samples(torch.zeros(1, 1, frames, 8, 8), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_contact_sheet_is_nearly_square() -> None:
    assert contact_sheet(torch.zeros(7, 3, 300, 300)).shape == (900, 900, 3)


def test_the_sentence_of_bad_input_is_found_in_a_state_s_message() -> None:
    message = "Flow run encountered an exception: InputError: no shard 3; make it again"
    found = complaint(message)
    assert (type(found), str(found)) == (InputError, "no shard 3; make it again")
    found = complaint("Task run encountered unexpected exception: OutageError: s3://bucket does not answer")
    assert (type(found), str(found)) == (OutageError, "s3://bucket does not answer")
    assert complaint("RuntimeError: broken") is None


def test_a_number_shows_its_interval_unless_it_is_a_point() -> None:
    assert cell({"value": 1.5, "low": 1.25, "high": 1.75, "n": 9}) == "1.5 (1.25 - 1.75)"
    assert cell({"value": 4, "low": 4, "high": 4, "n": 9}) == "4"
    assert cell(None) == ""

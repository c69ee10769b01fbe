"""Folders of images and videos of users."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import others
import pandas as pd
import pytest
import torch
from PIL import Image

from rcm_core.data.image_folder import Wanted, captions, header, pixels
from rcm_core.data.trajectory_store import Place
from rcm_core.errors import InputError

PICTURE = Wanted(3, 1, 16, 12, None)
CLIP = Wanted(3, 5, 32, 48, None)


def read(folder: Path, wanted: Wanted = PICTURE) -> dict[str, str]:
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return captions(Place(str(folder)), names, wanted)


def shown(path: Path, wanted: Wanted = PICTURE) -> torch.Tensor:
    """Return levels of 255, [C, T, H, W]."""
    found = pixels(Place(str(path.parent)), path.name, wanted)
    assert found.shape == (1, *wanted[:4])
    return ((found[0] + 1) * 127.5).round()


def flaw(path: Path, wanted: Wanted = PICTURE) -> str | None:
    return header(Place(str(path.parent)), path.name, wanted).flaw


def test_captions_beside_the_files_or_in_a_table(tmp_path: Path) -> None:
    others.picture(tmp_path / "a.png", 20, 20)
    others.picture(tmp_path / "sub/b.JPEG", 20, 20)
    expected = {"a.png": "red, and green", "sub/b.JPEG": "blau, grün"}
    (tmp_path / "a.txt").write_text("red,\n and green \n")
    (tmp_path / "sub/b.txt").write_text("blau, grün", encoding="utf-8")
    assert read(tmp_path) == expected
    (tmp_path / "a.txt").unlink()
    (tmp_path / "sub/b.txt").unlink()
    frame = pd.DataFrame({"file_name": list(expected), "text": list(expected.values())})
    frame.to_csv(tmp_path / "metadata.csv", index=False)
    assert read(tmp_path) == expected
    (tmp_path / "metadata.csv").unlink()
    frame.to_json(tmp_path / "metadata.jsonl", orient="records", lines=True)
    assert read(tmp_path) == expected
    (tmp_path / "metadata.jsonl").unlink()
    frame.rename(columns={"text": "caption"}).to_parquet(tmp_path / "metadata.parquet")
    assert read(tmp_path) == expected


def test_what_does_not_belong_together_is_one_sentence(tmp_path: Path) -> None:
    for i in range(3):
        others.picture(tmp_path / f"{i}.png", 20, 20)
        (tmp_path / f"{i}.txt").write_text(f"{i}")
    (tmp_path / "1.txt").write_text(" \n")
    (tmp_path / "2.txt").unlink()
    with pytest.raises(
        InputError, match=r"2 of 3 images have no caption, first: 1\.png; write it into a \.txt"
    ):
        read(tmp_path)
    (tmp_path / "1.png").unlink()
    with pytest.raises(InputError, match=r"1 of 2 captions have no file, first: 1\.txt; add the image"):
        read(tmp_path)
    (tmp_path / "1.txt").write_bytes(b"\xff\xfe")
    others.picture(tmp_path / "1.png", 20, 20)
    with pytest.raises(InputError, match=r"1\.txt is not UTF-8 text .*save it as UTF-8"):
        read(tmp_path)
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,text\n0.png,a\n")
    with pytest.raises(InputError, match=r"has captions in both metadata\.csv and 0\.txt; remove one"):
        read(tmp_path)
    for text in tmp_path.glob("*.txt"):
        text.unlink()
    with pytest.raises(InputError, match=r"2 of 3 images have no caption, first: 1\.png"):
        read(tmp_path)
    for content, said in (
        ("file_name,text\n0.png,a\n9.png,b\n", r"1 of 2 captions have no file, first: 9\.png; add it"),
        ("file_name,text\n0.png,a\n0.png,b\n", r"has 0\.png twice; remove one of the rows"),
        ("name,text\n0.png,a\n", r"has no column file_name"),
        (
            "file_name,label\n0.png,a\n",
            r"has the columns file_name, label; call the one with the texts prompt or text",
        ),
        ("file_name,text\n0.png,a red, big cat\n", r"line 2 has 3 fields, expected 2"),
        ("", r"metadata\.csv is not a \.csv table \(it is empty\)"),
    ):
        table.write_text(content)
        with pytest.raises(InputError, match=said) as caught:
            read(tmp_path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a\x00b", r"the caption of 0\.png has the control character U\+0000"),
        (b"a" * 10_001, r"the caption of 0\.png has 10,001 characters, expected at most 10,000"),
        (
            b"a" * 100_000,
            r"0\.txt is larger than 40,003 bytes; expected a caption of at most 10,000 characters",
        ),
    ],
)
def test_a_caption_that_is_no_prompt_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    others.picture(tmp_path / "0.png", 20, 20)
    (tmp_path / "0.txt").write_bytes(content)
    with pytest.raises(InputError, match=said):
        read(tmp_path)


def test_marks_and_separators_are_no_part_of_a_caption(tmp_path: Path) -> None:
    others.picture(tmp_path / "0.png", 20, 20)
    (tmp_path / "0.txt").write_bytes("\ufeffa\u2028seven\x0c\x85\n".encode())
    assert read(tmp_path) == {"0.png": "a seven"}


def test_the_kind_of_file_is_what_the_teacher_makes(tmp_path: Path) -> None:
    others.picture(tmp_path / "a.png", 20, 20)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(
        InputError, match=r"a\.png is no video, but the teacher makes 5 frame\(s\) of 48 x 32 pixels"
    ):
        read(tmp_path, CLIP)
    (tmp_path / "b.mp4").write_bytes(b"")
    with pytest.raises(InputError, match=r"b\.mp4 is no image, but the teacher makes 1 frame"):
        read(tmp_path)
    (tmp_path / "b.mp4").unlink()
    with pytest.raises(InputError, match="the teacher's pixels have 2 channels; files have 1 or 3"):
        read(tmp_path, PICTURE._replace(channels=2))


def test_a_picture_is_scaled_until_it_covers_and_cut_in_the_middle(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, 8:56] = (
        200,
        100,
        50,
    )  # 16 x 12 of 64 x 64: scaled to a quarter, two columns of each side cut off
    Image.fromarray(image).save(tmp_path / "a.png")
    # Lanczos overshoots beside the edge that is cut off: a few levels in the outermost columns
    expected = torch.tensor([200.0, 100.0, 50.0])[:, None, None, None].expand(3, 1, 16, 10)
    torch.testing.assert_close(shown(tmp_path / "a.png")[..., 1:-1], expected, rtol=0, atol=8)
    grey = shown(tmp_path / "a.png", PICTURE._replace(channels=1))
    assert grey[0, 0, 8, 6].item() == pytest.approx(0.299 * 200 + 0.587 * 100 + 0.114 * 50, abs=1)


def test_a_picture_is_seen_as_its_owner_sees_it(tmp_path: Path) -> None:
    """It is rotated by its EXIF orientation, and white where it is transparent."""
    upright = others.levels(16, 12, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(np.rot90(upright).copy()).save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(
        shown(tmp_path / "turned.png")[:, 0].permute(1, 2, 0), torch.from_numpy(upright).float()
    )
    assert not header(Place(str(tmp_path)), "turned.png", PICTURE).enlarged
    layers = np.dstack([upright, np.zeros((16, 12), np.uint8)])
    Image.fromarray(layers).save(tmp_path / "clear.png")
    assert (shown(tmp_path / "clear.png") == 255).all()


def test_files_that_will_not_do_are_known_by_their_beginning(tmp_path: Path) -> None:
    others.picture(tmp_path / "good.jpg", 64, 64)
    others.picture(tmp_path / "small.png", 16, 11)
    assert header(Place(str(tmp_path)), "good.jpg", PICTURE) == (None, False)
    assert header(Place(str(tmp_path)), "small.png", PICTURE) == (None, True)
    (tmp_path / "text.png").write_text("not an image")
    assert "cannot be read (cannot identify image file" in str(flaw(tmp_path / "text.png"))
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "deep.png")
    assert flaw(tmp_path / "deep.png") == "has more than 8 bits per channel; save it with 8"
    content = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.jpg cannot be read \(.*\); replace or remove it"):
        shown(tmp_path / "cut.jpg")


def test_the_first_frames_of_a_clip_or_those_at_a_rate(tmp_path: Path) -> None:
    greys = others.clip(tmp_path / "a.mp4", 12, 64, 96)
    for fps, step in ((None, 1), (16.0, 1), (8.0, 2)):
        wanted = CLIP._replace(fps=fps)
        assert header(Place(str(tmp_path)), "a.mp4", wanted) == (None, False)
        frames = shown(tmp_path / "a.mp4", wanted)
        # neighbours differ by 16 levels; H.264 at its default quality keeps a grey to three
        expected = torch.tensor(greys[: 5 * step : step]).float()[None, :, None, None].expand(frames.shape)
        torch.testing.assert_close(frames, expected, rtol=0, atol=4)
    assert header(Place(str(tmp_path)), "a.mp4", CLIP._replace(height=65, width=97)).enlarged


def test_a_clip_that_is_too_short_or_none_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others.clip(tmp_path / "a.mp4", 8, 32, 48)
    assert flaw(tmp_path / "a.mp4", CLIP._replace(frames=8)) is None
    assert str(flaw(tmp_path / "a.mp4", CLIP._replace(frames=9))).startswith(
        "has 8 frames, 9 are wanted; give longer"
    )
    slow = CLIP._replace(fps=8.0)
    assert str(flaw(tmp_path / "a.mp4", slow)).startswith("has 4 frames at 8 per second, 5 are wanted")
    with pytest.raises(InputError, match=r"a\.mp4 has 4 frames at 8 per second, 5 are wanted"):
        shown(tmp_path / "a.mp4", slow)
    (tmp_path / "none.mp4").write_text("no video")
    assert "cannot be read" in str(flaw(tmp_path / "none.mp4", CLIP))
    content = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    assert str(flaw(tmp_path / "cut.mp4", CLIP)).startswith("cannot be read (moov atom not found ")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(
        InputError, match=r"imageio-ffmpeg is not installed; pip install 'rcm-distill\[video\]'"
    ):
        flaw(tmp_path / "a.mp4", CLIP)

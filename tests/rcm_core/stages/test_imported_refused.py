"""Samples that do not fit are refused before a network is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import others
import pytest
import torch
from imports import PIXELS, SHAPES, TEXT, copy_of, run
from workspaces import accept_teacher

from rcm_core.errors import InputError


@pytest.fixture
def workspace(teachers: Callable[[str], Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy with the family that the test requests (``indirect``)."""
    return copy_of(teachers(getattr(request, "param", "sd3")), tmp_path / "workspace")


@pytest.fixture
def unread(workspace: Path) -> Path:
    """A workspace with damaged text encoders and VAE, so that loading one hides the error about the captions."""
    for weights in (workspace / "runs/teacher/pipeline").glob("*/*.safetensors"):
        if weights.parent.name != "transformer":
            weights.write_bytes(b"damaged")
    accept_teacher(workspace)
    return workspace


def refused(workspace: Path, folder: Path | str, said: str, **source: Any) -> None:
    with pytest.raises(InputError, match=said) as caught:
        run(workspace, folder, **source)
    assert "\n" not in str(caught.value)
    assert not (workspace / "runs/trajectories").exists()
    assert list((workspace / ".rcm").rglob("*.safetensors")) == []


def test_what_is_wrong_with_a_folder_is_said_before_a_network_is_loaded(unread: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    refused(unread, mine, r"source\.folder names .*mine, which does not exist; name a folder, or s3://")
    refused(unread, "ftp://host/x", r"expected a folder or s3://bucket/prefix, got ftp://")
    mine.mkdir()
    (mine / "x.png").mkdir()
    refused(unread, mine, r"x\.png is a folder, but has the name of a file to import; rename or remove it")
    (mine / "x.png").rmdir()
    (mine / "notes.md").write_text("about")
    refused(
        unread,
        mine,
        r"mine holds 1 files and none that can be imported; expected images \(\.jpeg, .*, videos",
    )
    others.pictures(mine, 5, *PIXELS["sd3"])
    refused(unread, mine, r"source\.fps is 16, but .*mine has no videos; set it to null", fps=16)
    (mine / "001.txt").unlink()
    refused(unread, mine, r"1 of 5 images have no caption, first: 001\.jpg; write it into a \.txt file")
    (mine / "001.txt").write_text("The  Digit 3")
    refused(
        unread,
        mine,
        r"'the digit 3' is in both trajectories\.source and validation; .*remove it from one",
    )
    (mine / "001.txt").write_text("mine")
    (mine / "001.jpg").write_text("no image")
    (mine / "002.webp").write_text("no image")
    refused(
        unread,
        mine,
        r"2 of 5 files cannot be used, first: 001\.jpg cannot be read \(.*\); replace or remove it",
    )
    others.tars(mine, SHAPES["sd3"], None)
    refused(unread, mine, r"holds both shard_000000\.tar and 001\.jpg; expected only tars of latents")


@pytest.mark.parametrize("workspace", ["cosmos"], indirect=True)
def test_clips_that_are_too_short_are_counted_before_a_network_is_loaded(
    unread: Path, tmp_path: Path
) -> None:
    for name, frames in (("a", 5), ("b", 4), ("c", 3)):
        others.clip(tmp_path / f"clips/{name}.mp4", frames, *PIXELS["cosmos"])
        (tmp_path / f"clips/{name}.txt").write_text(name)
    refused(
        unread,
        tmp_path / "clips",
        r"2 of 3 files cannot be used, first: b\.mp4 has 4 frames, 5 are wanted; give longer",
    )


@pytest.mark.parametrize("workspace", ["wan"], indirect=True)
def test_tars_that_do_not_fit_the_teacher(workspace: Path, tmp_path: Path) -> None:
    others.tars(tmp_path / "large", (2, 3, 4, 8), TEXT)
    refused(
        workspace,
        tmp_path / "large",
        r"latent\.pt has the shape \[2, 3, 4, 8\], but the teacher's latents are \[2, 3, 4, 6\]",
    )
    others.tars(tmp_path / "long", SHAPES["wan"], (7, 16))
    refused(
        workspace,
        tmp_path / "long",
        r"embed\.pt is \{'text': \[7, 16\]\}, but this teacher is conditioned on",
    )
    others.tars(tmp_path / "mixed", SHAPES["wan"], TEXT)
    others.tar(tmp_path / "mixed/shard_000002.tar", others.sample(9, SHAPES["wan"], None))
    refused(
        workspace,
        tmp_path / "mixed",
        r"1 of 10 samples have no embed\.pt, first: 000000009 of shard_000002\.tar",
    )
    others.tars(tmp_path / "infinite", SHAPES["wan"], TEXT)
    spoilt = others.sample(9, SHAPES["wan"], TEXT) | {
        "000000009.latent.pt": others.stored(torch.full(SHAPES["wan"], torch.inf))
    }
    others.tar(tmp_path / "infinite/shard_000002.tar", spoilt)
    with pytest.raises(
        InputError, match=r"1 of 10 samples of .*infinite are not finite, more than 1%; check the lat"
    ):
        run(workspace, tmp_path / "infinite")

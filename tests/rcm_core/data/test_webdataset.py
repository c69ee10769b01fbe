"""Tars in the layout of NVlabs/rcm, whole and damaged."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import others
import pytest
import torch

from rcm_core.data.trajectory_store import Place
from rcm_core.data.webdataset import Member, condition, latents, members
from rcm_core.errors import InputError

SHAPE, TEXT = (2, 3, 4, 6), (6, 16)
LIKE = {"text": torch.zeros(1, *TEXT)}


def only(folder: Path, content: dict[str, bytes]) -> Member:
    others.tar(folder / "a.tar", content)
    (found,) = members(Place(str(folder)), "a.tar")
    return found


def test_samples_are_found_where_they_lie(tmp_path: Path) -> None:
    """Members may have any order, lie in a folder and beside others; the last of repeated members counts."""
    first, second = others.sample(7, SHAPE, TEXT), others.sample(3, SHAPE, TEXT)
    again = {f"x/{name}": content for name, content in (others.sample(9, SHAPE, TEXT) | first).items()}
    others.tar(tmp_path / "a.tar", again | second | {"readme.txt": b"about", "000000003.json": b"{}"})
    place = Place(str(tmp_path))
    found = members(place, "a.tar")
    assert [m.key for m in found] == ["000000003", "x/000000007", "x/000000009"]
    assert [m.prompt for m in found] == ["prompt number 3", "prompt number 7", "prompt number 9"]
    for member, number in zip(found, (3, 7, 9)):
        rng = torch.Generator().manual_seed(number)
        x0 = latents(place, member, SHAPE)
        assert x0.dtype == torch.float32
        assert torch.equal(x0[0], torch.randn(SHAPE, generator=rng).bfloat16().float())
        text = condition(place, member, LIKE)["text"]
        assert torch.equal(text[0], torch.randn(TEXT, generator=rng).bfloat16().float())


def test_keys_may_have_dots(tmp_path: Path) -> None:
    content = {name.replace("000000004", "img.v1.2"): v for name, v in others.sample(4, SHAPE, TEXT).items()}
    found = only(tmp_path, content | {"img.v1.2.json": b"{}", "img.v1.2.image.pt": b"", "._img.pt": b""})
    assert (found.key, found.prompt) == ("img.v1.2", "prompt number 4")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("b.latents.pt", b"", r"b\.latents\.pt belongs to no sample; expected latent\.pt, prompt\.txt"),
        ("000000000.prompt.txt", b"\xef\xbb\xbf \n", r"sample 000000000 has no prompt\.txt"),
        ("000000000.prompt.txt", b"a\x00b", r"000000000\.prompt\.txt has the control character U\+0000"),
        (
            "000000000.prompt.txt",
            40_010 * b"a",
            r"prompt\.txt has 40,010 bytes; expected a prompt of at most",
        ),
        ("000000000.prompt.txt", b"\xff", r"prompt\.txt is not UTF-8 text"),
    ],
)
def test_nothing_of_a_tar_is_lost_in_silence(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        only(tmp_path, others.sample(0, SHAPE, TEXT) | {name: content})


def test_a_member_twice_and_a_link_are_refused(tmp_path: Path) -> None:
    others.tar(tmp_path / "a.tar", others.sample(0, SHAPE, TEXT))
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("000000000.embed.pt"), io.BytesIO(b""))
    with pytest.raises(InputError, match=r"a\.tar holds 000000000\.embed\.pt twice; remove one"):
        members(Place(str(tmp_path)), "a.tar")
    others.tar(tmp_path / "b.tar", others.sample(0, SHAPE, None))
    with tarfile.open(tmp_path / "b.tar", "a") as archive:
        link = tarfile.TarInfo("1.latent.pt")
        link.type, link.linkname = tarfile.SYMTYPE, "000000000.latent.pt"
        archive.addfile(link)
    with pytest.raises(InputError, match=r"1\.latent\.pt is a link or has holes"):
        members(Place(str(tmp_path)), "b.tar")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.zeros(SHAPE, dtype=torch.complex64), "is a tensor of complex64"),
        (torch.zeros(SHAPE, dtype=torch.int64), r"is a tensor of int64 .*expected floating-point numbers"),
        (torch.zeros(SHAPE, dtype=torch.bool), "is a tensor of bool"),
        (torch.zeros(SHAPE, device="meta"), "is a tensor of float32 .*meta"),
        (torch.zeros(SHAPE).to_sparse(), "sparse"),
        (torch.zeros(8, *SHAPE, 300), "is larger than"),
    ],
)
def test_latents_that_are_no_numbers_of_a_network_are_refused(
    tmp_path: Path, value: torch.Tensor, said: str
) -> None:
    content = others.sample(0, SHAPE, None) | {"000000000.latent.pt": others.stored(value)}
    with pytest.raises(InputError, match=said):
        latents(Place(str(tmp_path)), only(tmp_path, content), SHAPE)


def test_embeddings_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    for value in ({"text": 0}, {"text": torch.zeros(TEXT, dtype=torch.complex64)}):
        content = others.sample(0, SHAPE, TEXT) | {"000000000.embed.pt": others.stored(value)}
        with pytest.raises(InputError, match=r"embed\.pt (holds a int|is a tensor of complex64)"):
            condition(Place(str(tmp_path)), only(tmp_path, content), LIKE)


def test_latents_of_an_image_may_lack_their_one_frame(tmp_path: Path) -> None:
    content = others.sample(0, (4, 8, 6), None)
    assert latents(Place(str(tmp_path)), only(tmp_path, content), (4, 1, 8, 6)).shape == (1, 4, 1, 8, 6)


def test_a_condition_of_several_tensors_comes_by_name(tmp_path: Path) -> None:
    like = {"text": torch.zeros(1, *TEXT), "pooled": torch.zeros(1, 5)}
    content = others.sample(0, SHAPE, TEXT)
    place = Place(str(tmp_path))
    with pytest.raises(
        InputError,
        match=r"embed\.pt is a tensor, but this teacher is conditioned on .*'pooled': \[5\]\}; leave the",
    ):
        condition(place, only(tmp_path, content), like)
    by_name = {"text": torch.ones(TEXT), "pooled": torch.ones(5)}
    found = condition(place, only(tmp_path, content | {"000000000.embed.pt": others.stored(by_name)}), like)
    assert {name: value.shape for name, value in found.items()} == {n: v.shape for n, v in like.items()}


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        (
            "latent.pt",
            r"a\.tar: sample 000000000 has no latent\.pt; expected latent\.pt, prompt\.txt and maybe embed",
        ),
        ("prompt.txt", r"a\.tar: sample 000000000 has no prompt\.txt"),
    ],
)
def test_a_sample_that_is_not_whole_is_named(tmp_path: Path, missing: str, said: str) -> None:
    content = {k: v for k, v in others.sample(0, SHAPE, TEXT).items() if not k.endswith(missing)}
    with pytest.raises(InputError, match=said):
        only(tmp_path, content)


def test_what_is_no_tar_of_samples(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"a\.tar holds no samples; expected members called <key>\.latent\.pt"
    ):
        only(tmp_path, {"readme.md": b"about"})
    others.tar(tmp_path / "b.tar", others.sample(0, SHAPE, TEXT))
    content = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(content[:1500])
    with pytest.raises(InputError, match=r"b\.tar is not a complete tar of samples \(.*\); fetch it again"):
        members(Place(str(tmp_path)), "b.tar")
    (tmp_path / "b.tar").write_text("no tar")
    with pytest.raises(InputError, match=r"b\.tar is not a complete tar of samples"):
        members(Place(str(tmp_path)), "b.tar")


class Harm:
    """Object whose unpickling runs code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise AssertionError('it was run')",))


def test_tensors_that_do_not_fit_or_are_none(tmp_path: Path) -> None:
    place, whole = Place(str(tmp_path)), others.sample(0, SHAPE, TEXT)
    with pytest.raises(
        InputError,
        match=r"latent\.pt has the shape \[2, 3, 4, 6\], but the teacher's latents are \[2, 3, 4, 8\]; import",
    ):
        latents(place, only(tmp_path, whole), (2, 3, 4, 8))
    with pytest.raises(
        InputError, match=r"embed\.pt is \{'text': \[6, 16\]\}, but .* on \{'text': \[7, 16\]\}; leave"
    ):
        condition(place, only(tmp_path, whole), {"text": torch.zeros(1, 7, 16)})
    for content, said in (
        (
            others.stored(Harm()),
            r"latent\.pt is no file of tensors that can be read safely \(.*\); save tensors alone",
        ),
        (b"not a tensor", r"latent\.pt is no file of tensors that can be read safely"),
        (b"rubbish", r"latent\.pt is no file of tensors that can be read safely"),
        (b"", r"latent\.pt is no file of tensors that can be read safely"),
        (others.stored({"x": torch.zeros(2)}), r"latent\.pt holds a dict; expected a tensor \[2, 3, 4, 6\]"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            latents(place, only(tmp_path, whole | {"000000000.latent.pt": content}), SHAPE)
        assert "\n" not in str(caught.value)

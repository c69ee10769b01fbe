"""Images and tars that users bring for training."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from scripts.bad_inputs.given import with_changes
from scripts.bad_inputs.project import Case


def png(size: tuple[int, int] = (8, 8), mode: str = "L") -> bytes:
    """Return the bytes of a picture."""
    stream = io.BytesIO()
    Image.new(mode, size).save(stream, "png")
    return stream.getvalue()


def torch_bytes(value: Any) -> bytes:
    """Return the bytes that torch.save writes."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def tar(*members: tuple[str, bytes]) -> bytes:
    """Return the bytes of a tar with these members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def samples() -> dict[str, dict[str, bytes]]:
    """Folders of a user's own samples, none of which can be imported."""
    good = {"a.png": png(), "a.txt": b"a handwritten six"}
    latent, prompt = torch_bytes(torch.zeros(1, 1, 8, 8)), b"a handwritten six"

    def one(latent: bytes = latent, prompt: bytes = prompt, *more: tuple[str, bytes]) -> dict[str, bytes]:
        return {"a.tar": tar(("0.latent.pt", latent), ("0.prompt.txt", prompt), *more)}

    return {
        "nothing": {},
        "nothing that can be imported": {"notes.md": b"x"},
        "a picture without a caption": {"a.png": png()},
        "a caption without a picture": good | {"b.txt": b"x"},
        "an empty picture": good | {"a.png": b""},
        "a text called a picture": good | {"a.png": b"not a picture"},
        "half a picture": good | {"a.png": png()[:40]},
        "a picture of 16 bits": good | {"a.png": png(mode="I;16")},
        "an empty caption": good | {"a.txt": b" \n"},
        "a caption in UTF-16": good | {"a.txt": "a six".encode("utf-16")},
        "a caption with NUL": good | {"a.txt": b"a\0six"},
        "a caption of 100,000 characters": good | {"a.txt": b"a" * 100_000},
        "a video among pictures": good | {"b.mp4": b"x", "b.txt": b"x"},
        "pictures and tars": good | one(),
        "captions twice": good | {"metadata.csv": b"file_name,text\na.png,six\n"},
        "a table without file_name": {"a.png": png(), "metadata.csv": b"name,text\na.png,six\n"},
        "a table without captions": {"a.png": png(), "metadata.csv": b"file_name\na.png\n"},
        "a table that names no file": {"a.png": png(), "metadata.csv": b"file_name,text\nb.png,six\n"},
        "a table with ragged rows": {"a.png": png(), "metadata.csv": b"file_name,text\na.png,six,7\n"},
        "JSON lines that are none": {"a.png": png(), "metadata.jsonl": b"{"},
        "JSON lines with half of a surrogate pair": {
            "a.png": png(),
            "metadata.jsonl": b'{"file_name": "a.png", "text": "\\ud800"}\n',
        },
        "a Parquet table that is none": {"a.png": png(), "metadata.parquet": b"PAR1"},
        "an empty tar": {"a.tar": tar()},
        "a text called a tar": {"a.tar": b"not a tar"},
        "half a tar": {"a.tar": one()["a.tar"][:700]},
        "a sample without a prompt": {"a.tar": tar(("0.latent.pt", latent))},
        "a sample without latents": {"a.tar": tar(("0.prompt.txt", prompt))},
        "a member twice": one(latent, prompt, ("0.latent.pt", latent)),
        "a prompt in Latin-1": one(latent, "sept é".encode("latin-1")),
        "latents of another shape": one(torch_bytes(torch.zeros(4, 1, 8, 8))),
        "latents of whole numbers": one(torch_bytes(torch.zeros(1, 1, 8, 8, dtype=torch.int64))),
        "complex latents": one(torch_bytes(torch.zeros(1, 1, 8, 8, dtype=torch.complex64))),
        "sparse latents": one(torch_bytes(torch.zeros(1, 1, 8, 8).to_sparse())),
        "latents that are a list": one(torch_bytes([1, 2])),
        "latents that are no tensor file": one(b"rubbish"),
        "empty latents": one(b""),
        "a pickle of a function": one(torch_bytes({"f": print})),
        "embeddings of another shape": one(latent, prompt, ("0.embed.pt", torch_bytes(torch.zeros(3, 5)))),
        "embeddings of complex numbers": one(
            latent, prompt, ("0.embed.pt", torch_bytes(torch.zeros(3, 5, dtype=torch.complex64)))
        ),
        "tensors that belong to no sample": one(latent, prompt, ("other.pt", latent)),
    }


def accepted_samples() -> dict[str, tuple[str, dict[str, bytes]]]:
    """Folders that look odd and are imported, each with the reason."""
    latent, prompt = torch_bytes(torch.zeros(1, 1, 8, 8)), b"a handwritten six"
    one = (("a.b.latent.pt", latent), ("a.b.prompt.txt", prompt))
    both = (*one, ("c.latent.pt", latent), ("c.prompt.txt", b"a handwritten two"))
    return {
        "a caption with a byte order mark": (
            "the mark is no part of the text",
            {
                "a.png": png(),
                "a.txt": b"\xef\xbb\xbfa handwritten six",
                "b.png": png(),
                "b.txt": b"a handwritten two",
            },
        ),
        "a picture with transparent parts": (
            "what is behind them is white, as docs/data.md says",
            {"a.png": png(mode="RGBA"), "a.txt": prompt, "b.png": png(), "b.txt": b"a handwritten two"},
        ),
        "keys with dots": (
            "WebDataset has such keys; the known endings tell where they end",
            {"a.tar": tar(*both)},
        ),
        "a readme in a tar": ("it is no part of a sample", {"a.tar": tar(*both, ("README.md", b"x"))}),
    }


def own_samples(root: Path) -> Iterator[Case]:
    """Rows of samples; each lies in a folder of its own below ``root/given``."""
    values = yaml.safe_load((root / "params.yaml").read_text())
    for number, (what, files) in enumerate(samples().items()):
        yield _own(root, values, f"samples{number}", what, files)
    for number, (what, (reason, files)) in enumerate(accepted_samples().items()):
        yield replace(_own(root, values, f"good{number}", what, files), accepted=reason)


def _own(root: Path, values: Mapping[str, Any], name: str, what: str, files: Mapping[str, bytes]) -> Case:
    folder = root / "given" / f"own-{name}"
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)
    params = f"given/own-{name}.yaml"
    chosen = with_changes(values, "trajectories", source={"folder": str(folder.relative_to(root))})
    (root / params).write_text(yaml.safe_dump(chosen))
    return Case("own samples", what, ("run", "trajectories", "--params", params))

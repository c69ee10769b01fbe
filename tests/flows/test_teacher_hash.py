"""A teacher's hash changes only with its content, in a folder and on S3."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs

from flows.teacher_hash import reference_hash
from rcm_core.errors import InputError


def test_a_folder_is_known_by_its_bytes(tmp_path: Path) -> None:
    weights = tmp_path / "teacher" / "weights"
    weights.parent.mkdir()
    weights.write_text("one")
    with pytest.raises(InputError, match=r"holds no model_index\.json; expected a pipeline"):
        reference_hash(str(weights.parent), None)
    (weights.parent / "model_index.json").write_text("{}")
    first = reference_hash(str(weights.parent), None)
    os.utime(weights, (0, 0))
    assert reference_hash(str(weights.parent), None) == first
    weights.write_text("two")
    assert reference_hash(str(weights.parent), None) != first


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder on this machine"):
        reference_hash(str(tmp_path / "none"), None)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the endpoint of a local S3 with an empty bucket ``teachers``."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    script = (
        "from moto.server import ThreadedMotoServer as S; import sys; "
        "s = S(ip_address='127.0.0.1', port=0, verbose=False); s.start(); "
        "print(s.get_host_and_port()[1], flush=True); sys.stdin.read()"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    s3fs.S3FileSystem(endpoint_url=endpoint).mkdir("teachers")
    yield endpoint
    server.kill()
    server.wait()
    server.stdin.close()
    server.stdout.close()


@pytest.mark.system
@pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*", "ignore::ResourceWarning")
def test_an_s3_prefix_is_known_by_its_objects(s3: str) -> None:
    system = s3fs.S3FileSystem(endpoint_url=s3)
    with pytest.raises(InputError, match="is empty"):
        reference_hash("s3://teachers/t", s3)
    system.pipe("teachers/t/weights", b"one")
    first = reference_hash("s3://teachers/t", s3)
    for name in ("weights/", ".cache/huggingface/notes", ".gitattributes", "vae/", "vae_$folder$"):
        system.pipe(f"teachers/t/{name}", b"" if name.startswith(("weights", "vae")) else b"note")
    assert reference_hash("s3://teachers/t", s3) == first
    system.pipe("teachers/t/weights", b"two")
    assert reference_hash("s3://teachers/t", s3) != first

"""``rcm doctor``: installed and missing components, and the command that installs what is missing."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from infra.prefect.server import POOL, Local, api
from infra.state import state_home
from rcm_core.errors import InputError
from rcm_core.units import GIB

NEEDED = (
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "prefect",
    "ray",
    "dvc",
    "s3fs",
    "pandas",
    "pyarrow",
)
SPACE = 5 * GIB


@dataclass(frozen=True)
class Finding:
    """One line of the report; ``remedy`` is the command that fixes it."""

    subject: str
    found: str
    remedy: str = ""
    needed: bool = False
    """Whether the project cannot run without this component."""


def examine(root: Path) -> list[Finding]:
    """Return all lines of the report, the basics first."""
    return [*_system(root), *_packages(), *_compute(), *_services(root), *_storage()]


def _system(root: Path) -> Iterator[Finding]:
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    remedy = "" if fits else "install Python 3.11 - 3.13 and create a new environment"
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}", remedy, needed=True)
    yield Finding("cores", str(len(os.sched_getaffinity(0))))
    free = shutil.disk_usage(root).free
    remedy = "" if free >= SPACE else f"free some space under {root}"
    yield Finding("disk", f"{free / GIB:.1f} GiB free", remedy, needed=True)
    git = shutil.which("git")
    yield Finding("git", git or "missing", "" if git else "install git (apt-get install git)", needed=True)
    if git:
        inside = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False
        )
        remedy = "" if inside.returncode == 0 else "git init && git add -A && git commit -m start"
        yield Finding("repository", inside.stdout.strip()[:12] or "none", remedy, needed=True)


def _packages() -> Iterator[Finding]:
    for name in NEEDED:
        found = _version(name)
        yield Finding(name, found or "missing", "" if found else "pip install -e .", needed=True)
    for name, remedy in (
        ("triton", "pip install triton (Linux)"),
        ("flash-attn", "pip install --no-build-isolation -e '.[gpu]' (needs a GPU and nvcc; optional)"),
    ):
        found = _version(name)
        yield Finding(name, found or "not installed", "" if found else remedy)


def _compute() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("gpu", f"{names} (CUDA {torch.version.cuda})")
    else:
        build = "a CPU build of torch" if torch.version.cuda is None else "torch sees no device"
        yield Finding("gpu", f"none ({build}); everything runs on the CPU")
    yield _attention()
    yield _plain_attention()


def _plain_attention() -> Finding:
    import torch
    from rcm_kernels.plain import plain_backend

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    said = {"torch": "PyTorch's CPU attention", "cudnn": "cuDNN", "flash": "PyTorch's flash attention"}
    chosen = plain_backend(device)
    return Finding("attention without tangents", said.get(chosen, chosen))


def _attention() -> Finding:
    import torch
    from rcm_kernels.dispatch import LONG_KEYS, why_not_triton

    device = "cuda" if torch.cuda.is_available() else "cpu"
    missing = why_not_triton(device, torch.bfloat16, 128)
    auto = f"reference, chunked from {LONG_KEYS} keys" if device == "cpu" or missing else "triton"
    return Finding("attention tangents", f"auto is {auto}" + (f"; no triton: {missing}" if missing else ""))


def _services(root: Path) -> Iterator[Finding]:
    url = os.environ.get("PREFECT_API_URL") or Local(root).server.facts().get("url")
    if url and api(url).healthy():
        workers = len(api(url).online_workers(POOL))
        yield Finding("prefect server", f"{url}, {workers} worker(s) in {POOL}", "" if workers else "rcm up")
    else:
        yield Finding("prefect server", f"{url} does not answer" if url else "not running", "rcm up")
    yield _keeper(root)
    yield _ray()
    initialised = (root / ".dvc").is_dir()
    yield Finding(
        "dvc project",
        "initialised" if initialised else "missing",
        "" if initialised else "dvc init",
        needed=True,
    )
    yield Finding("live state", str(state_home(root)))


def _keeper(root: Path) -> Finding:
    """Report whether the keeper runs. Without it, a dead server, worker or run is restarted only by `rcm up`."""
    process = Local(root).keeper.running()
    if process is None:
        return Finding("keeper", "not running", "rcm up")
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(process.create_time()))
    return Finding("keeper", f"running since {since} (process {process.pid})")


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("ray", "each run starts its own (RAY_ADDRESS is not set)")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except (OSError, ValueError) as error:
        return Finding(
            "ray", f"RAY_ADDRESS = {address} does not answer ({error})", "start it, or unset RAY_ADDRESS"
        )
    return Finding("ray", f"answers at {address}")


def _storage() -> Iterator[Finding]:
    names = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "AWS_PROFILE")
    shown = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    if "AWS_ACCESS_KEY_ID" in os.environ:
        shown.append("AWS_ACCESS_KEY_ID is set")
    yield Finding(
        "s3", ", ".join(shown) or "no AWS_* variable is set (only needed for s3:// teachers and targets)"
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def project_root() -> Path:
    """Return the current folder; InputError if it is not an rcm-distill project."""
    here = Path.cwd()
    if not (here / "dvc.yaml").is_file() or not (here / "conf").is_dir():
        raise InputError(f"{here} is not an rcm-distill project (no dvc.yaml and conf/); go to its root")
    return here

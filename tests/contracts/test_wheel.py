"""The kernels as a library: installed from the wheel, without the checkout on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
USE = """
import torch, rcm_kernels
from rcm_kernels import attention_jvp
from rcm_kernels.attention_jvp.configs import find_tuned
from rcm_core.jvp import jvp, flash_jvp
q = torch.randn(1, 2, 5, 8)
out, tangent = attention_jvp(q, q, q, q)
assert out.shape == tangent.shape == q.shape
print(rcm_kernels.__file__)
"""


def test_a_plain_install_of_the_wheel_has_the_kernels(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"  # a build leaves folders in its source folder
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    code = f"import sys; sys.path.insert(0, {str(site)!r}){USE}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(site)

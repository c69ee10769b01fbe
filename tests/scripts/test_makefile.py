"""``make compare`` with a Python that only notes what it is asked."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tiny import ROOT


def test_one_failed_part_of_the_comparison_does_not_stop_the_others(tmp_path: Path) -> None:
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    asked = tmp_path / "asked"
    python.write_text(f'#!/bin/sh\necho "$*" >> {asked}\ncase "$*" in *"--teacher mini") exit 1;; esac\n')
    python.chmod(0o755)
    (tmp_path / ".installed").touch()
    ended = subprocess.run(
        ["make", "compare", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2
    assert "compare-mini" in ended.stderr
    said = asked.read_text().splitlines()
    parts = ("--teacher mini", "--teacher scenes", "mixture", "balance", "warm_start", "memory")
    assert [p for p in parts if not any(line.endswith(p) for line in said)] == []
    assert said[1] == "-m scripts.compare.page"  # what there is of the part that failed is written down

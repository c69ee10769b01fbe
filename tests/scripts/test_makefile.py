"""The Makefile with a fake Python that only records its arguments and number of threads."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny import ROOT

NOTES = """#!/bin/sh
echo "${OMP_NUM_THREADS:-all}: $*" >> %s
case "$*" in
  *"--teacher mini") exit 1;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python";;
esac
"""


@dataclass
class Noted:
    """The fake Python and its recorded calls."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "python"

    @property
    def environment(self) -> Path:
        return self.folder / "venv"

    def asked(self) -> list[str]:
        return (self.folder / "asked").read_text().splitlines()

    def make(self, target: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MAKEFLAGS")}
        command = ["make", target, f"VENV={self.environment}", f"PYTHON={self.python}"]
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def noted(tmp_path: Path) -> Noted:
    made = Noted(tmp_path)
    made.python.write_text(NOTES % (tmp_path / "asked"))
    made.python.chmod(0o755)
    return made


def test_one_failed_part_of_the_comparison_does_not_stop_the_others(noted: Noted) -> None:
    ended = noted.make("compare")
    assert ended.returncode == 2
    assert "compare-mini" in ended.stderr
    said = [line for line in noted.asked() if "-m experiments" in line]
    parts = ("--teacher mini", "--teacher scenes", "mixture", "balance", "warm_start", "memory")
    assert [p for p in parts if not any(line.endswith(p) for line in said)] == []
    # the page is written with the results of the failed part
    assert said[1] == "all: -m experiments.comparison.page"


def test_tests_come_after_what_they_need_and_compute_with_one_thread(noted: Noted) -> None:
    ended = noted.make("test")
    assert ended.returncode == 0, ended.stderr
    venv, *installed, compiled, tests = noted.asked()
    assert venv == f"all: -m venv {noted.environment}"
    assert all(" -m pip install " in line and "-c constraints.txt" in line for line in installed)
    assert f"-m compileall -qq -j 0 {noted.environment}/lib" in compiled
    # with an upgraded pip, not with the one bundled with Python
    assert installed[0].endswith("--upgrade pip")
    assert installed[1].endswith("-e .[dev]")
    assert tests.startswith("1: -m pytest ")
    again = noted.make("test")
    assert again.returncode == 0
    assert noted.asked()[-1] == tests
    assert len(noted.asked()) == len(installed) + 4  # nothing is installed twice


def test_the_slow_tests_are_in_test_all_alone_and_ci_runs_that(noted: Noted) -> None:
    both = [noted.make(target) for target in ("test", "test-all")]
    assert [ended.returncode for ended in both] == [0, 0]
    some, every = (line for line in noted.asked() if " -m pytest " in line)
    assert some == f"{every} -m not slow"
    assert "make test-all\n" in (ROOT / ".ci/run").read_text()

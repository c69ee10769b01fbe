"""Progress output of pytest while several processes run the tests."""

from __future__ import annotations

import time

import pytest


class FileProgress:
    """Plugin that prints a file's name and the elapsed minutes when its first test starts, and no dots."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._seen: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """Count a test that passed without a dot."""
        return ("passed", "", "PASSED") if report.passed and report.when == "call" else None

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Print the file of ``nodeid`` if none of its tests has started before."""
        file = nodeid.split("::")[0]
        if file not in self._seen:
            self._seen.add(file)
            print(f"{(time.monotonic() - self._started) / 60:5.1f} min  {file}", flush=True)

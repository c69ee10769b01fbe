"""A tiny project in which all stages have run, and the commands on it, in this process."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra import cli
from infra.executors.local import LocalExecutor
from rcm_core.samplers import jobs
from rcm_core.storage.run_folder import RunFolder
from tests.support.tiny import prepare, run_all, tiny_values

SECONDS = 120
SIGNALS = (signal.SIGALRM, signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Case:
    """One mutilated input: what it is, the change of a file or setting, the command that reads it."""

    where: str
    what: str
    command: tuple[str, ...]
    place: str | None = None
    """File to change."""
    damage: Callable[[bytes], bytes] | None = None
    """Function of its bytes; None: the file is removed."""
    accepted: str = ""
    """Reason to accept the input; empty: it must be refused."""
    disk: Literal["full", "read-only"] | None = None
    """Kind of the mount at the folder ``disk``."""


class Hang(Exception):  # noqa: N818 - what happened
    """The command did not end."""


class Project:
    """The project in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self) -> None:
        """Run all stages, and keep a copy of the student."""
        run_all(self.root, prepare(self.root, tiny_values()), LocalExecutor(self.root))
        shutil.copytree(RunFolder.of(self.root).published, self.root / "student")

    def run(self, case: Case) -> dict[str, Any]:
        """What the command said of the input, whose file is as before afterwards."""
        with self._mount(case), self._apply_change(case):
            status, said = self._call(case.command)
        last = said.strip().splitlines()[-1] if said.strip() else ""
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        refused = status == 2 and len(errors) == 1 and last == errors[0] and "Traceback" not in said
        taken = {"accepted": case.accepted, "taken": status == 0 and not errors} if case.accepted else {}
        return {
            "where": case.where,
            "what": case.what,
            "command": " ".join(ascii(part)[1:-1][:80] for part in case.command),
            "status": status,
            "last_line": last.replace(str(self.root), ".")[:300],
            "refused": refused,
        } | taken

    def _call(self, command: tuple[str, ...]) -> tuple[int | str, str]:
        said = io.StringIO()
        before, folder = sys.argv, Path.cwd()
        for kind in ("teacher", "student", "codec"):
            jobs.KEPT.forget(kind)
        os.chdir(self.root)
        os.environ["RCM_EXECUTOR"] = "local"
        sys.argv = ["rcm", *command]
        status: int | str = 0
        handlers = {number: signal.getsignal(number) for number in SIGNALS}
        signal.signal(signal.SIGALRM, _hang)
        signal.alarm(SECONDS)
        try:
            with redirect_stderr(said), redirect_stdout(io.StringIO()):
                try:
                    cli.main()
                except SystemExit as end:
                    status = end.code if isinstance(end.code, int) else int(end.code is not None)
                except Hang:
                    status = "hang"
                except Exception:  # what is measured: an error that no command turned into a sentence
                    status = "traceback"
                    traceback.print_exc()
        finally:
            signal.alarm(0)
            for number, handler in handlers.items():
                signal.signal(number, handler)
            sys.argv = before
            os.chdir(folder)
        return status, said.getvalue()

    @contextmanager
    def _mount(self, case: Case) -> Iterator[None]:
        if case.disk is None:
            yield
            return
        place = self.root / "disk"
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
        try:
            if case.disk == "read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            else:
                with suppress(OSError), (place / "filling").open("wb", buffering=0) as stream:
                    while stream.write(bytes(4096)):
                        pass
            yield
        finally:
            subprocess.run(["umount", str(place)], check=True)

    @contextmanager
    def _apply_change(self, case: Case) -> Iterator[None]:
        if case.place is None:
            yield
            return
        path = self.root / case.place
        content = path.read_bytes()
        path.unlink()  # files may be linked
        if case.damage is not None:
            path.write_bytes(case.damage(content))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            path.write_bytes(content)


def is_right(row: dict[str, Any]) -> bool:
    """Return whether the input of ``row`` was refused, or accepted if it has a reason to be."""
    return bool(row["taken"] if "taken" in row else row["refused"])


def _hang(*_: Any) -> None:
    raise Hang

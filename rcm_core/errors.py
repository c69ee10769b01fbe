"""Errors that the user can correct: one sentence that says what came, what is expected, what to do."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from shutil import Error as CopyError

BAD_INPUT = 2
"""Exit status for bad input."""
OUTAGE = 75
"""Exit status if a storage did not answer: EX_TEMPFAIL of sysexits.h."""
REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place",
    errno.EDQUOT: "free some space, or choose another place",
    errno.EFBIG: "choose a file system that takes larger files",
    errno.EACCES: "correct its permissions, or choose another place",
    errno.EPERM: "correct its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "name a file instead",
    errno.ENOTDIR: "name a place below a folder",
    errno.EEXIST: "remove it, or choose another name",
    errno.ENOTEMPTY: "empty it, or choose another name",
    errno.ELOOP: "correct the links",
    errno.EIO: "check the disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""Advice for errors of the operating system, keyed by errno."""


class InputError(ValueError):
    """Bad input. The command line prints its message alone and exits with status 2."""


class OutageError(InputError):
    """A storage does not answer now. The same command may succeed later, so flows retry it; exit status 75."""


def nearest(name: str, names: Iterable[str]) -> str:
    """Return `` (did you mean 'x'?)`` for the nearest of ``names``, or an empty string."""
    match = get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def one_line(error: BaseException, most: int = 300) -> str:
    """Return the message of ``error`` as one line of at most ``most`` characters; its class if it has no message."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def named_line(error: BaseException, most: int = 300) -> str:
    """Return the class and message of ``error`` as one line; the message is cut after ``most`` characters."""
    name, line = type(error).__name__, one_line(error, most)
    return name if line == name else f"{name}: {line}"


@contextmanager
def exit_for_bad_input() -> Iterator[None]:
    """Turn bad input inside the block into one sentence on stderr and exit status 2; raise other errors.

    An OutageError gives exit status 75.
    """
    try:
        yield
    except (InputError, OSError) as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        sys.exit(OUTAGE if isinstance(error, OutageError) else BAD_INPUT)


def sentence_of(error: InputError | OSError) -> str | None:
    """Return the line that a command prints for ``error``; None for an error that the user cannot correct."""
    if isinstance(error, InputError):
        return one_line(error, sys.maxsize)
    number, path, reason = error.errno, error.filename, error.strerror
    if isinstance(error, CopyError):  # shutil.copytree lists (source, target, reason) of each file
        first = error.args[0][0] if isinstance(error.args[0], list) else (None, None, str(error))
        match = re.search(r"\[Errno (\d+)\]", str(first[2]))
        number, path = int(match[1]) if match else None, first[1]
        reason = os.strerror(number) if number else None
    if number not in REMEDIES:
        return None
    where = path if isinstance(path, str) else os.fsdecode(path) if isinstance(path, bytes) else "a file"
    return f"{where} cannot be read or written ({reason}); {REMEDIES[number]}"

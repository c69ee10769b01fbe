"""Which implementation of a kernel runs: named by the caller, or chosen by stated rules."""

from __future__ import annotations

BACKENDS = ("reference", "chunked")
UNAVAILABLE = {"triton": "no Triton implementation of attention_jvp is part of this version"}

LONG_KEYS = 1024
"""From this many keys on, "auto" streams over blocks of keys instead of forming the whole score matrix."""


def choose_backend(requested: str, keys: int) -> str:
    """The backend for ``keys`` keys; ValueError says why a requested one cannot be had."""
    if requested == "auto":
        return "chunked" if keys >= LONG_KEYS else "reference"
    if requested in BACKENDS:
        return requested
    if requested in UNAVAILABLE:
        raise ValueError(f"backend {requested!r} is not available: {UNAVAILABLE[requested]}; use {_listed()}")
    raise ValueError(f"unknown backend {requested!r}; use {_listed()}")


def _listed() -> str:
    return ", ".join(repr(name) for name in ("auto", *BACKENDS))

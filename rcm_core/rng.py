"""Addressed randomness: a random number depends on the place of its use, never on the computations before it."""

from __future__ import annotations

import hashlib

import torch


def address(*parts: int | str) -> int:
    """Return a 63-bit seed for an address such as ``(seed, "train", step, rank)``."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh torch generator for this address."""
    return torch.Generator(device=device).manual_seed(address(*parts))

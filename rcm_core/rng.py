"""Addressed randomness: every random number is a function of where it is used, never of what ran before."""

from __future__ import annotations

import hashlib

import torch


def address(*parts: int | str) -> int:
    """A 63-bit seed from an address such as ``(seed, "train", step, rank)``."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(*parts: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A fresh torch generator for this address."""
    return torch.Generator(device=device).manual_seed(address(*parts))

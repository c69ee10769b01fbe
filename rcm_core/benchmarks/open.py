"""``open``: any prompts; no images of its own. What comes of them is judged by the network that ``judge:`` names."""

from __future__ import annotations

judge = "open"
UNLABELLED = -1


def label(prompt: str) -> int:  # noqa: ARG001 - every prompt is as good as any other
    """Prompts have no classes."""
    return UNLABELLED

"""The detector: a small fully convolutional network for digits with colour and position in scenes.

Every 4x4 cell of the canvas predicts whether a digit's centre is near, which digit, which colour and at what offset.
``scripts/data/train_detector.py`` trains it only on scenes of the train scans and writes its weights to
``data/scenes``; generators never train against it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rcm_core.errors import InputError
from rcm_core.evaluation.judges.base import one_thread
from rcm_core.scenes.request import NAMES
from rcm_core.storage.files import sha256

PLACE = "data/scenes/detector.safetensors"
DIGEST = "017ac4916838f17b5b1450a6c726d0c3c8df34060fb142b9d994d5ce8d8ba0d2"
"""sha256 of the weights file. It is part of the code hash, so new weights invalidate every result that used the old."""
FEATURES = 64
CELL = 4
THRESHOLD = 0.5
APART = 7.0
"""Minimum distance in pixels between two centres; nearer detections are the same object."""
HEADS = {"object": 1, "digit": 10, "colour": len(NAMES), "offset": 2}


class Seen(NamedTuple):
    """One detected digit; its centre in pixels."""

    digit: int
    colour: int
    x: float
    y: float
    score: float


class Detector(nn.Module):
    """The network from frames in [-1, 1], ``[N, 3, H, W]``, to hidden features and the outputs of its heads."""

    def __init__(self) -> None:
        super().__init__()
        widths, strides = (3, 16, 32, 48, 64, 64, FEATURES), (1, 2, 1, 2, 1, 1)
        layers: list[nn.Module] = []
        for before, after, stride in zip(widths, widths[1:], strides):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.Conv2d(FEATURES, sum(HEADS.values()), 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return hidden features ``[N, 64, H/4, W/4]`` and outputs by head ``[N, channels, H/4, W/4]``."""
        hidden = self.trunk(frames)
        parts = torch.split(self.head(hidden), list(HEADS.values()), dim=1)  # type: ignore[no-untyped-call]
        return hidden, dict(zip(HEADS, parts))


@lru_cache(maxsize=1)
def load_detector() -> Detector:
    """Load the detector with its weights; InputError if the file is missing or has another hash."""
    path = Path(__file__).parents[3] / PLACE
    if not path.is_file():
        raise InputError(
            f"{path} does not exist; restore it from git or run `python scripts/data/train_detector.py`"
        )
    if sha256(path) != DIGEST:
        raise InputError(
            f"{path} is not the expected detector (sha256 {DIGEST[:12]}...); restore it from git or set DIGEST in"
            " rcm_core/evaluation/judges/detector.py to the new hash"
        )
    detector = Detector()
    detector.load_state_dict(load_file(path))
    return detector.eval().requires_grad_(False)


def run(detector: Detector, frames: Tensor, size: int = 256) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs of ``detector`` for ``frames`` in [-1, 1], ``[N, 3, H, W]``, in chunks and on one thread."""
    with one_thread(), torch.no_grad():
        chunks = [detector(part) for part in frames.split(size)]  # type: ignore[no-untyped-call]
    heads = {name: torch.cat([outputs[name] for _, outputs in chunks]) for name in HEADS}
    return torch.cat([hidden for hidden, _ in chunks]), heads


def detect(heads: dict[str, Tensor]) -> list[list[Seen]]:
    """Return the detected digits of every frame in order of confidence."""
    scores = heads["object"][:, 0].sigmoid()
    digits, colours = heads["digit"].argmax(1), heads["colour"].argmax(1)
    detected: list[list[Seen]] = [[] for _ in scores]
    likely = (scores > THRESHOLD).nonzero()
    order = scores[tuple(likely.T)].argsort(descending=True, stable=True)
    for n, row, column in likely[order].tolist():
        dx, dy = (heads["offset"][n, :, row, column] * CELL).tolist()
        x, y = CELL * (column + 0.5) + dx, CELL * (row + 0.5) + dy
        if all(max(abs(x - other.x), abs(y - other.y)) >= APART for other in detected[n]):
            place = (n, row, column)
            detected[n].append(Seen(int(digits[place]), int(colours[place]), x, y, float(scores[place])))
    return detected

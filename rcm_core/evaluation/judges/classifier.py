"""The judge of benchmarks with one class per prompt: an independent classifier of real images.

A small convolutional network, trained only on the train split of real images; generators never train against it.
Its 64 hidden features are the space of the Frechet distance, precision, recall and the Vendi score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcm_core.evaluation.judges.base import Pixels, one_thread, refuse_pixels, refuse_unpaired, unit_range
from rcm_core.protocols import Benchmark
from rcm_core.registry import find_benchmark
from rcm_core.rng import address, generator

FEATURES = 64
STEPS = 400
BATCH = 128
PEAK_LR = 3e-3
NOISE = 0.2  # std of the training noise; the pixels span [-1, 1]
SMOOTHING = 0.05


class Classifier(Pixels):
    """A trained classifier. Every method takes decoded pixels in [0, 1], ``[N, C, T, H, W]``."""

    name = "classifier"
    categories: tuple[str, ...] = ()

    def __init__(self, network: nn.Sequential, data: Benchmark, shape: torch.Size) -> None:
        self._network = network
        self._data = data
        self._shape = shape

    def category(self, prompt: str) -> str:  # noqa: ARG002 - there is one
        """Return "": these benchmarks have no categories."""
        return ""

    def labels(self, prompts: Sequence[str]) -> Tensor:
        """Return the class of each prompt, int64 ``[N]``."""
        return torch.tensor([self._data.label(prompt) for prompt in prompts], dtype=torch.int64)

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits of all classes, float32 ``[N, classes]``."""
        return self._run(pixels, self._network)

    def features(self, pixels: Tensor) -> np.ndarray:
        """Return hidden features, float64 ``[N, 64]``."""
        return self._run(pixels, nn.Sequential(*list(self._network)[:-1])).double().numpy()

    def correct(self, pixels: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """Return whether the likeliest class of each sample is that of its prompt, bool ``[N]``."""
        refuse_unpaired(pixels, prompts)
        return (self.logits(pixels).argmax(1) == self.labels(prompts)).numpy()

    def observe(self, pixels: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:  # noqa: ARG002
        """Return no inputs of further metrics."""
        return {}

    def real_features(self, split: str) -> np.ndarray:
        """Return features of the real images of ``split``, float64 ``[N, 64]``."""
        return self.features(unit_range(self._data.images(split)[0]))

    def accuracy_on(self, split: str) -> float:
        """Return the accuracy on the real images of ``split``."""
        pixels, labels = self._data.images(split)
        return float((self.logits(unit_range(pixels)).argmax(1) == labels).double().mean())

    @property
    def digest(self) -> str:
        """sha256 of the weights and their names."""
        digest = hashlib.sha256()
        for name, value in sorted(self._network.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)}\0".encode() + value.numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def _run(self, pixels: Tensor, network: nn.Sequential) -> Tensor:
        refuse_pixels(pixels, self._shape)
        with one_thread():
            outputs: Tensor = network(2 * pixels.float().cpu() - 1)
        return outputs


@lru_cache(maxsize=4)
def train_classifier(data: str) -> Classifier:
    """Train the classifier of ``rcm_core/benchmarks/<data>.py``; addressed randomness gives the same weights always."""
    source = find_benchmark(data)
    pixels, labels = source.images("train")
    # the global stream gives the initial weights; fork_rng restores it afterwards
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(address("judge", data))
        network = _network(pixels.shape[1:], source.classes)
        _train(network, pixels, labels, generator("judge", data, "batches"))
    return Classifier(network.eval().requires_grad_(False), source, pixels.shape[1:])


def _network(shape: torch.Size, classes: int) -> nn.Sequential:
    """Build the network; frames are channels, so that the first layer sees motion."""
    channels, frames, height, width = shape
    halved = ((height + 1) // 2) * ((width + 1) // 2)
    return nn.Sequential(
        nn.Flatten(1, 2),
        nn.Conv2d(channels * frames, 16, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(32 * halved, FEATURES),
        nn.SiLU(),
        nn.Linear(FEATURES, classes),
    )


def _train(network: nn.Sequential, pixels: Tensor, labels: Tensor, rng: torch.Generator) -> None:
    optimiser = torch.optim.AdamW(network.parameters(), lr=PEAK_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_LR, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(pixels), (BATCH,), generator=rng)
        batch = pixels[rows]
        batch = batch + NOISE * torch.randn(batch.shape, generator=rng)
        loss = F.cross_entropy(network(batch), labels[rows], label_smoothing=SMOOTHING)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        schedule.step()

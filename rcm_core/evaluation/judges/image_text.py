"""The judge of ``open``: an image-text network that the user names, a CLIP or SigLIP in transformers layout.

    Frechet distance to the teacher, Vendi score    in its image embeddings
    accuracy            retrieval: whether a sample's own prompt is the most similar of all sampled prompts
                        (R-precision; Park et al., NeurIPS Datasets and Benchmarks 2021)
    text_similarity     max(0, cosine) of sample and prompt (CLIPScore without factor; Hessel et al., arXiv 2104.08718)
    subject_consistency VBench's definition (arXiv 2311.17982) on the embeddings of a clip's frames

The embedding of a clip is the mean over up to ``FRAMES`` evenly spaced frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rcm_core.device import resolve_device
from rcm_core.errors import InputError
from rcm_core.evaluation.judges.base import refuse_range, refuse_unpaired
from rcm_core.pipelines.folder import read_part
from rcm_core.pipelines.quiet import without_bars

FRAMES = 8
BATCH = 64
"""Batch size for images and texts; a constant, so that a sample's embedding does not depend on their number."""
PARTS = ("config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class OpenJudge:
    """A ``base.Judge`` with the network in ``folder``; ``look`` returns embeddings [N, T, D]."""

    folder: str
    digest: str
    """sha256 of the folder."""
    device: str

    categories = ()
    pixels = False
    finding = "finds the own prompt among all that were sampled"

    @property
    def name(self) -> str:
        return (
            f"{read_part(Path(self.folder), 'config.json').get('model_type', 'network')} of images and texts"
        )

    def category(self, prompt: str) -> str:  # noqa: ARG002
        """Return "": ``open`` has no categories."""
        return ""

    def look(self, pixels: Tensor) -> Tensor:
        """Return image embeddings of up to ``FRAMES`` frames, float32 ``[N, T, D]`` on the CPU."""
        refuse_range(pixels)
        if pixels.shape[1] != 3:
            raise InputError(
                f"samples have {pixels.shape[1]} channels, but the judge needs RGB; decode them to 3 channels"
            )
        indices = torch.linspace(0, pixels.shape[2] - 1, min(FRAMES, pixels.shape[2])).round().long()
        frames = pixels[:, :, indices].transpose(1, 2).flatten(0, 1)
        embedded = embed_frames(self.folder, self.device, frames)
        return embedded.reshape(len(pixels), len(indices), -1)

    def correct(self, looked: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """Return whether no other of the distinct ``prompts`` is more similar than a sample's own, bool ``[N]``."""
        own, most = self._likeness(looked, prompts)
        return np.asarray(own >= most)

    def observe(self, looked: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the similarity to the own prompt; for clips also the embeddings of the frames."""
        observations = {"similarity": self._likeness(looked, prompts)[0]}
        return observations | ({"subjects": looked.double().numpy()} if looked.shape[1] > 1 else {})

    def features(self, looked: Tensor) -> np.ndarray:
        """Return the mean embedding over frames, float64 ``[N, D]``."""
        mean: np.ndarray = looked.double().mean(1).numpy()
        return mean

    def real_features(self, split: str) -> None:
        """Return None: ``open`` has no real images."""

    def accuracy_on(self, split: str) -> float:
        """Raise InputError: ``open`` has no real images with prompts."""
        raise InputError(
            f"data: open has no {split} images with prompts to test its judge on; set teacher.gate to null"
        )

    def _likeness(self, looked: Tensor, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the cosine of each sample to its own prompt, and to the most similar of all, float64 ``[N]``."""
        refuse_unpaired(looked, prompts)
        distinct, own = np.unique(np.array(prompts), return_inverse=True)
        images = F.normalize(looked.double().mean(1), dim=-1)
        words = F.normalize(read(self.folder, tuple(distinct.tolist())).double(), dim=-1)
        cosines = (images @ words.T).numpy()
        return cosines[np.arange(len(own)), own], cosines.max(1)


def check_judge(folder: Path) -> None:
    """Raise InputError unless ``folder`` holds an image-text network in transformers layout."""
    for part in PARTS:
        if not (folder / part).is_file():
            raise InputError(
                f"judge.network {folder} has no {part}; give a CLIP or SigLIP in transformers layout (config, weights,"
                " preprocessor, tokenizer)"
            )
    config = read_part(folder, "config.json")
    if not {"vision_config", "text_config"} <= config.keys():
        raise InputError(
            f"judge.network {folder} holds a {config.get('model_type')}, which is not an image-text network;"
            " give a CLIP or SigLIP"
        )
    Preparation.read(folder)


@lru_cache(maxsize=2)
def network(folder: str, device: str) -> nn.Module:
    """Load the network, float32, in eval mode."""
    from transformers import AutoModel

    with without_bars():
        loaded = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return loaded.eval().requires_grad_(False).to(resolve_device(device))  # type: ignore[no-any-return]


@torch.no_grad()
def embed_frames(folder: str, device: str, frames: Tensor) -> Tensor:
    """Embeddings [N, D] of ``frames`` [N, 3, H, W] in [0, 1], float32 on the CPU."""
    model: Any = network(folder, device)
    prepare = Preparation.read(Path(folder))
    parts = [
        _embedding(model.get_image_features(prepare(part.to(model.device, torch.float32))))
        for part in torch.split(frames, BATCH)
    ]
    return torch.cat(parts).float().cpu()


@lru_cache(maxsize=8)
@torch.no_grad()
def read(folder: str, texts: tuple[str, ...]) -> Tensor:
    """Return embeddings [N, D] of ``texts``, float32, truncated to the network's maximum length.

    Runs on the CPU, because the process that compares may lack the device of the workers.
    """
    from transformers import AutoTokenizer

    model: Any = network(folder, "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    room = model.config.text_config.max_position_embeddings
    parts = []
    for first in range(0, len(texts), BATCH):
        # padded to the full length, as SigLIP was trained; CLIP's mask ignores the padding
        tokens = tokenizer(
            list(texts[first : first + BATCH]),
            padding="max_length",
            truncation=True,
            max_length=room,
            return_tensors="pt",
        )
        arguments = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        parts.append(_embedding(model.get_text_features(**arguments)))
    return torch.cat(parts)


def _embedding(output: Any) -> Tensor:
    embedded: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return embedded


@dataclass(frozen=True)
class Preparation:
    """The preprocessing of ``preprocessor_config.json`` on tensors: resize, centre crop, normalise."""

    shorter: int | None
    """Target length of the shorter side; None: resize to ``size``."""
    size: tuple[int, int]
    """Final height and width."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> Preparation:
        """Read the configuration; InputError if it needs other steps."""
        config = read_part(folder, "preprocessor_config.json")
        try:
            size, crop = config["size"], config.get("crop_size")
            if isinstance(size, int):  # the format of the first CLIP's files
                cropped = config.get("do_center_crop", True)
                size = {"shortest_edge": size} if cropped else {"height": size, "width": size}
            shorter = size.get("shortest_edge")
            whole: Any = crop if config.get("do_center_crop", shorter is not None) else size
            both = (whole, whole) if isinstance(whole, int) else (whole["height"], whole["width"])
            return cls(shorter, both, tuple(config["image_mean"]), tuple(config["image_std"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{folder}/preprocessor_config.json has no usable {error}; expected size, crop_size, image_mean and"
                " image_std as CLIP and SigLIP have them"
            ) from error

    def __call__(self, images: Tensor) -> Tensor:
        """Preprocess ``images`` [N, 3, H, W] in [0, 1]."""
        height, width = images.shape[-2:]
        to = self.size
        if self.shorter is not None:
            factor = self.shorter / min(height, width)
            to = (max(self.shorter, round(height * factor)), max(self.shorter, round(width * factor)))
        images = F.interpolate(images, to, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = (to[0] - self.size[0]) // 2, (to[1] - self.size[1]) // 2
        images = images[..., top : top + self.size[0], left : left + self.size[1]]
        mean, std = (torch.tensor(v, device=images.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std

"""The judge of ``open``: a network of images and texts that the user names, a CLIP or SigLIP in transformers layout.

    Frechet distance to the teacher, Vendi score    in its image embeddings
    accuracy            retrieval: whether a sample's own prompt is the likest to it of all prompts that are sampled
                        (R-precision; Park et al., NeurIPS Datasets and Benchmarks 2021)
    text_similarity     max(0, cosine) of sample and prompt (CLIPScore less its factor; Hessel et al., arXiv 2104.08718)
    subject_consistency of clips, as VBench has it (arXiv 2311.17982), in the embeddings of their frames

Of a clip up to ``FRAMES`` frames are seen, evenly spread; its embedding is their mean.
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
"""Images or texts at a time; a constant, so that a sample's embedding does not depend on how many there are."""
PARTS = ("config.json", "preprocessor_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class OpenJudge:
    """A ``base.Judge`` whose network lies in ``folder``; what it keeps of samples are embeddings [N, T, D]."""

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
        """There are no categories."""
        return ""

    def look(self, pixels: Tensor) -> Tensor:
        """Image embeddings of up to ``FRAMES`` frames, float32 ``[N, T, D]`` on the CPU."""
        refuse_range(pixels)
        if pixels.shape[1] != 3:
            raise InputError(
                f"the judge sees RGB, and samples have {pixels.shape[1]} channels; decode them to 3"
            )
        shown = torch.linspace(0, pixels.shape[2] - 1, min(FRAMES, pixels.shape[2])).round().long()
        frames = pixels[:, :, shown].transpose(1, 2).flatten(0, 1)
        embedded = embed_frames(self.folder, self.device, frames)
        return embedded.reshape(len(pixels), len(shown), -1)

    def correct(self, looked: Tensor, prompts: Sequence[str]) -> np.ndarray:
        """Whether no other of the distinct ``prompts`` is likelier than a sample's own, bool ``[N]``."""
        own, most = self._likeness(looked, prompts)
        return np.asarray(own >= most)

    def observe(self, looked: Tensor, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        """Similarity to the own prompt; for clips also the embeddings of the frames."""
        found = {"similarity": self._likeness(looked, prompts)[0]}
        return found | ({"subjects": looked.double().numpy()} if looked.shape[1] > 1 else {})

    def features(self, looked: Tensor) -> np.ndarray:
        """The mean over frames, float64 ``[N, D]``."""
        mean: np.ndarray = looked.double().mean(1).numpy()
        return mean

    def real_features(self, split: str) -> None:
        """There are no real images."""

    def accuracy_on(self, split: str) -> float:
        """InputError: there are no real images whose prompt is known."""
        raise InputError(
            f"data: open has no {split} images with prompts to test its judge on; set teacher.gate to null"
        )

    def _likeness(self, looked: Tensor, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Cosine of each sample to its own prompt, and to the likeliest of all, float64 ``[N]``."""
        refuse_unpaired(looked, prompts)
        distinct, own = np.unique(np.array(prompts), return_inverse=True)
        images = F.normalize(looked.double().mean(1), dim=-1)
        words = F.normalize(read(self.folder, tuple(distinct.tolist())).double(), dim=-1)
        cosines = (images @ words.T).numpy()
        return cosines[np.arange(len(own)), own], cosines.max(1)


def check_judge(folder: Path) -> None:
    """InputError unless ``folder`` holds a network of images and texts in transformers layout."""
    for part in PARTS:
        if not (folder / part).is_file():
            raise InputError(
                f"judge.network {folder} has no {part}; give a CLIP or SigLIP in transformers layout (config, weights,"
                " preprocessor, tokenizer)"
            )
    config = read_part(folder, "config.json")
    if not {"vision_config", "text_config"} <= config.keys():
        raise InputError(
            f"judge.network {folder} holds a {config.get('model_type')}, which does not see images and texts both;"
            " give a CLIP or SigLIP"
        )
    Preparation.read(folder)


@lru_cache(maxsize=2)
def network(folder: str, device: str) -> nn.Module:
    """The network, float32, in eval mode."""
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
    """Embeddings [N, D] of ``texts``, float32; what the network has no room for is cut off.

    On the CPU, for whoever compares need not have the device of those who look.
    """
    from transformers import AutoTokenizer

    model: Any = network(folder, "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    room = model.config.text_config.max_position_embeddings
    parts = []
    for first in range(0, len(texts), BATCH):
        # to the full length: SigLIP was trained so, and CLIP's mask makes it indifferent
        tokens = tokenizer(
            list(texts[first : first + BATCH]),
            padding="max_length",
            truncation=True,
            max_length=room,
            return_tensors="pt",
        )
        given = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        parts.append(_embedding(model.get_text_features(**given)))
    return torch.cat(parts)


def _embedding(found: Any) -> Tensor:
    embedded: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embedded


@dataclass(frozen=True)
class Preparation:
    """What ``preprocessor_config.json`` asks for, on tensors: resize, crop the middle, normalise."""

    shorter: int | None
    """Side that the shorter one gets; None: both get ``size``."""
    size: tuple[int, int]
    """Height and width in the end."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> Preparation:
        """InputError if the file asks for something else."""
        config = read_part(folder, "preprocessor_config.json")
        try:
            size, crop = config["size"], config.get("crop_size")
            if isinstance(size, int):  # as files of the first CLIP have it
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
        """Of ``images`` [N, 3, H, W] in [0, 1]."""
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

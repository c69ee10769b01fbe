"""How much of a prompt's order a frozen random text encoder keeps: ``python -m scripts.probe_text_order``.

A linear probe reads from a digit's own token its colour (one of six) and whether it is named first or second, in
prompts with two coloured digits: fitted on the training prompts, scored on the test prompts, mean over seeds of the
encoder. Writes docs/results/text_order.json; seconds on two cores.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from rcm_core.mini import build_text_encoder, build_tokenizer
from rcm_core.prompts import read_prompts
from rcm_core.scans import WORDS
from rcm_core.scenes.request import NAMES, parse
from rcm_core.storage import write_json

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "data/prompts/scenes"
SEEDS = range(4)
RIDGE = 1e-2


def cases(split: str) -> list[tuple[str, int, int, int]]:
    """(prompt, index of a digit's word, its colour, 1 if it is named second), both digits of each prompt."""
    found = []
    for prompt in read_prompts(PROMPTS / f"{split}.txt"):
        if parse(prompt).category != "attribution":
            continue
        words = prompt.lower().split()
        places = [i for i, word in enumerate(words) if word in WORDS]
        found += [(prompt, at, NAMES.index(words[at - 1]), order) for order, at in enumerate(places)]
    return found


def features(encoder: Any, tokenizer: Any, rows: list[tuple[str, int, int, int]]) -> Tensor:
    """The digits' own tokens and a constant, ``[N, width + 1]``."""
    tokens = tokenizer([row[0] for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    own = hidden[torch.arange(len(rows)), torch.tensor([row[1] for row in rows])]
    return torch.cat([own, torch.ones(len(rows), 1)], 1).double()


def accuracy(fit: tuple[Tensor, Tensor], score: tuple[Tensor, Tensor]) -> float:
    """Of the ridge regression onto one-hot classes."""
    x, y = fit
    targets = F.one_hot(y).double()
    weights = torch.linalg.solve(x.mT @ x + RIDGE * torch.eye(x.shape[1]), x.mT @ targets)
    return float(((score[0] @ weights).argmax(1) == score[1]).double().mean())


def probe(width: int, heads: int, order: float, seed: int) -> dict[str, float]:
    """Test accuracy of both probes for an encoder of these settings."""
    splits = {split: cases(split) for split in ("train", "test")}
    tokenizer = build_tokenizer([row[0] for rows in splits.values() for row in rows], 16)
    torch.manual_seed(seed)
    encoder = build_text_encoder(len(tokenizer), width, heads, order)
    seen = {split: features(encoder, tokenizer, rows) for split, rows in splits.items()}
    labels = {
        name: {split: torch.tensor([row[at] for row in rows]) for split, rows in splits.items()}
        for name, at in (("colour", 2), ("second", 3))
    }
    return {
        name: accuracy((seen["train"], at["train"]), (seen["test"], at["test"]))
        for name, at in labels.items()
    }


def main() -> None:
    """Mini's encoder, and the one of scenes."""
    found = []
    for name in ("mini", "scenes-train"):
        mini = yaml.safe_load((ROOT / f"conf/teacher/{name}.yaml").read_text())["teacher"]["mini"]
        settings = (mini["text_dim"], mini["text_heads"], mini["text_order"])
        runs = [probe(*settings, seed) for seed in SEEDS]
        means = {key: round(fmean(run[key] for run in runs), 3) for key in runs[0]}
        found.append({"encoder": name, **dict(zip(("width", "heads", "order"), settings)), **means})
        print(json.dumps(found[-1]))
    write_json(ROOT / "docs/results/text_order.json", {"seeds": len(SEEDS), "rows": found})


if __name__ == "__main__":
    main()

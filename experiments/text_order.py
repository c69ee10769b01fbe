"""Linear probes of the embedded teachers' frozen text encoders: ``python -m experiments.text_order``.

In prompts that name two digits, a linear probe predicts from a digit's token its colour (one of six, if it has one),
whether it is named first or second, and its place (one of four, if it has one and no colour). Probes are fitted on the
training prompts and scored on the test prompts; the result is the mean over seeds of the encoder. Writes
docs/results/text_order.json; takes a few minutes on two cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from rcm_core.benchmarks.scenes import meanings
from rcm_core.data.prompts import read_prompts
from rcm_core.pipelines.mini import build_text_encoder, build_tokenizer
from rcm_core.pipelines.mini_text_encoder import teach
from rcm_core.storage.files import write_json

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "data/prompts/scenes"
SEEDS = range(4)
RIDGE = 1e-2
LENGTH = 16


class Case(NamedTuple):
    """A digit's word in a prompt."""

    prompt: str
    at: int
    second: int
    colour: int
    place: int


KINDS: dict[str, tuple[Callable[[Case], int], Callable[[Case], bool]]] = {
    "colour": (lambda c: c.colour - 1, lambda c: c.colour > 0),
    "second": (lambda c: c.second, lambda _: True),
    "place": (lambda c: c.place - 1, lambda c: 0 < c.place <= 4 and not c.colour),
}
"""Labels of the probes, and the cases in which each exists."""


def cases(split: str) -> list[Case]:
    """Return both digits of every prompt of ``split`` that names two."""
    found = []
    for prompt in read_prompts(PROMPTS / f"{split}.txt"):
        words = sorted(meanings(prompt).items())
        if len(words) == 2:
            found += [Case(prompt, at, i, m[1], m[2]) for i, (at, m) in enumerate(words)]
    return found


def features(encoder: Any, tokenizer: Any, rows: list[Case]) -> Tensor:
    """Return the digits' own tokens and a constant, ``[N, width + 1]``."""
    tokens = tokenizer([row.prompt for row in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    own = hidden[torch.arange(len(rows)), torch.tensor([row.at for row in rows])]
    return torch.cat([own, torch.ones(len(rows), 1)], 1).double()


def accuracy(fit: tuple[Tensor, Tensor], score: tuple[Tensor, Tensor]) -> float:
    """Return the test accuracy of ridge regression onto one-hot classes."""
    x, y = fit
    weights = torch.linalg.solve(x.mT @ x + RIDGE * torch.eye(x.shape[1]), x.mT @ F.one_hot(y).double())
    return float(((score[0] @ weights).argmax(1) == score[1]).double().mean())


def probe(mini: dict[str, Any], seed: int) -> dict[str, float]:
    """Return the test accuracy of all probes for the encoder with these settings."""
    prompts = read_prompts(PROMPTS / "train.txt")
    tokenizer = build_tokenizer(prompts, LENGTH)
    torch.manual_seed(seed)
    encoder = build_text_encoder(len(tokenizer), mini["text_dim"], mini["text_heads"], mini["text_order"])
    if steps := mini.get("text_steps", 0):
        teach(encoder, tokenizer, prompts, meanings, steps)
    found = {}
    for kind, (of, asked) in KINDS.items():
        rows = {split: [c for c in cases(split) if asked(c)] for split in ("train", "test")}
        fit, score = (
            (features(encoder, tokenizer, rs), torch.tensor([of(c) for c in rs])) for rs in rows.values()
        )
        found[kind] = accuracy(fit, score)
    return found


def main() -> None:
    """Probe mini's encoder, and that of scenes before and after its training."""
    conf = {
        name: yaml.safe_load((ROOT / f"conf/teacher/{name}.yaml").read_text())["teacher"]["mini"]
        for name in ("mini-train", "scenes-train")
    }
    drawn = conf["scenes-train"] | {"text_steps": 0}
    found = []
    for name, mini in {
        "mini": conf["mini-train"],
        "scenes, as drawn": drawn,
        "scenes": conf["scenes-train"],
    }.items():
        runs = [probe(mini, seed) for seed in SEEDS]
        means = {key: round(fmean(run[key] for run in runs), 3) for key in runs[0]}
        found.append({"encoder": name, **means})
        print(json.dumps(found[-1]), flush=True)
    write_json(ROOT / "docs/results/text_order.json", {"seeds": len(SEEDS), "rows": found})


if __name__ == "__main__":
    main()

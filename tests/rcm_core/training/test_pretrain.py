"""Training data of the embedded teachers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from tiny import ROOT

from infra.params import compose
from rcm_core.benchmarks import scenes
from rcm_core.data.prompts import read_prompts
from rcm_core.pipelines.mini import save_pipeline
from rcm_core.training.pretrain import image_source


def test_categories_with_several_objects_are_drawn_more_often(tmp_path: Path) -> None:
    for name in ("conf", "data"):
        (tmp_path / name).symlink_to(ROOT / name)
    section = compose(tmp_path, ["teacher=scenes-train", "teacher.mini.batch=24", "method=rcm"]).teacher
    assert section.mini is not None
    prompts = read_prompts(ROOT / "data/prompts/scenes/train.txt")
    untaught = section.mini.model_copy(update={"text_steps": 0, "layers": 1, "heads": 1, "head_dim": 16})
    save_pipeline(tmp_path / "pipeline", section.shape, prompts, untaught, section.shift, section.seed)
    source = image_source(section, prompts, tmp_path / "pipeline", torch.device("cpu"))
    seen: list[str] = []
    draw = source.draw

    def noted(row: int, rng: torch.Generator) -> torch.Tensor:
        seen.append(scenes.categories[scenes.label(prompts[row])])
        return draw(row, rng)

    source.draw = noted
    assert source.batch(0, 0, 24).x0.shape == (24, 3, 1, 32, 32)
    assert Counter(seen) == dict(zip(scenes.categories, (2, 4, 6, 2, 4, 6)))

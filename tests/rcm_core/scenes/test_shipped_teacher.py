"""The teacher of ``teacher=scenes`` is the one of its record, and does what it is said to do."""

from __future__ import annotations

import torch
import yaml
from safetensors.torch import load_file
from tiny import ROOT

from rcm_core.evaluation.judge import judge_for
from rcm_core.prompts import cycle, read_prompts
from rcm_core.sampling import Job, Teacher, sample_pixels
from rcm_core.storage import read_json, sha256_folder

PLACE = ROOT / "data/scenes/teacher"


def preset(name: str) -> dict:
    return yaml.safe_load((ROOT / f"conf/teacher/{name}.yaml").read_text())


def section(name: str) -> dict:
    return preset(name)["teacher"]


def test_what_is_shipped_is_what_the_record_says_and_the_recipe_made() -> None:
    shipped, recipe, record = section("scenes"), section("scenes-train"), read_json(PLACE / "record.json", "")
    digest = sha256_folder(PLACE / "pipeline")
    assert shipped["hash"] == record["shipped_hash"] == digest
    assert record["parameters"]["teacher"]["mini"] == recipe["mini"]
    chosen = ("source", "hash", "mini", "gate")
    assert {k: v for k, v in shipped.items() if k not in chosen} == {
        k: v for k, v in recipe.items() if k not in chosen
    }
    rest = [{k: v for k, v in preset(n).items() if k != "teacher"} for n in ("scenes", "scenes-train")]
    assert rest[0] == rest[1]
    files = [path for path in PLACE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12 * 2**20
    weights = load_file(PLACE / "pipeline/transformer/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}


def test_it_shows_what_prompts_of_unseen_compositions_ask_for() -> None:
    facts, record = section("scenes"), read_json(PLACE / "record.json", "")
    assert record["test"]["samples"] == 553
    assert record["test"]["guidance"] == facts["guidance"]
    assert record["test"]["accuracy_mean"] >= 0.75
    keys = ("family", "guidance", "shift", "solver", "negative_prompt")
    teacher = Teacher(
        str(PLACE / "pipeline"), shape=tuple(facts["shape"]), steps=20, **{k: facts[k] for k in keys}
    )
    prompts = tuple(cycle(read_prompts(ROOT / "data/prompts/scenes/test.txt"), 48))
    pixels = sample_pixels(Job(teacher, prompts, tuple(range(48)), 0, 20))
    # 48 samples scatter by 6 %, and 20 steps are fewer than 50: three deviations below what 50 steps reach
    assert judge_for("scenes").correct(pixels, prompts).mean() >= record["test"]["accuracy_mean"] - 0.18

"""The code in the model card of a published student runs unchanged, for every family."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build
from tiny import tiny_values
from typer.testing import CliRunner

from infra.cli import app
from infra.executors.local import LocalExecutor
from rcm_core.config.base import check
from rcm_core.config.sections import Params
from rcm_core.stages import publish
from rcm_core.storage.files import sha256_folder, write_json
from rcm_core.storage.schemas import ROWS

NUMBER = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 1}
SIZES = {"wan": (1, 1, 4, 6), "sana": (4, 1, 16, 16), "cosmos": (4, 1, 4, 6)}
"""State shapes for families whose smallest shape is too small for the pipeline or is no picture."""


def without_t5(folder: Path) -> None:
    """Remove T5, as diffusers saves a StableDiffusion3Pipeline whose T5 is None."""
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
    index = json.loads((folder / "model_index.json").read_text())
    write_json(
        folder / "model_index.json", index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    )


def published(family: str, place: Path) -> tuple[Path, str]:
    """Publish a tiny student of ``family`` (or "sd3 without T5") in ``place / "this folder"``; return path and card."""
    name = family.split()[0]
    pipeline = place / "teacher"
    shape = build(name, pipeline)
    shape = SIZES.get(name, shape)
    if name == "wan":
        build_wan(pipeline)
    if family != name:
        without_t5(pipeline)
    facts = {
        "hash": sha256_folder(pipeline), "source": "teacher", "family": name, "shape": shape, "guidance": 2.0,
        "steps": 4, "shift": 3.0, "solver": "euler", "negative_prompt": "", "precision": "float32", "licence": "other",
        "data": "open",
    }  # fmt: skip
    (place / "runs/teacher").mkdir(parents=True)
    write_json(place / "runs/teacher/teacher.json", facts)
    shutil.copytree(pipeline / "transformer", place / "runs/select/transformer")
    sampler = {"kind": "renoise", "times": [[1.5708, 1.2]]}
    choice = {"name": "step_000001-ema_0.1", "step": 1, "ema": 0.1}
    selection = {
        "steps": [2], "choice": choice, "sampler": sampler, "reason": "the only one", "metric": "frechet_teacher",
        "candidates": [{**choice, "scores": {"2": NUMBER}, "score": NUMBER}],
    }  # fmt: skip
    write_json(place / "runs/select/selection.json", selection)
    quality = {name: dict.fromkeys(ROWS, NUMBER) for name in ("teacher", "student_2")}
    (place / "runs/evaluate").mkdir()
    write_json(
        place / "runs/evaluate/quality.json", quality | {"protocol": {"hash": "0" * 64, "description": ""}}
    )
    params: Any = check(Params, tiny_values(), "params.yaml")
    publish.run(params, place, LocalExecutor(place))
    folder = place / "runs/publish/pipeline"
    shutil.move(folder, place / "this folder")
    return place / "this folder", (place / "this folder/README.md").read_text()


def build_wan(folder: Path) -> None:
    from families import PROMPTS, TINY

    from rcm_core.pipelines.mini import save_pipeline

    shutil.rmtree(folder)
    save_pipeline(folder, (1, 1, 4, 6), PROMPTS, TINY, 3.0, seed=0)


@pytest.mark.filterwarnings("ignore:.*")  # warnings of diffusers on loading
@pytest.mark.parametrize("family", ["wan", "sd3", "sd3 without T5", "longcat", "sana", "cosmos"])
def test_what_the_card_says_runs_as_written(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, card = published(family, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RCM_HOME", str(tmp_path / ".rcm"))
    use = card.split("## Use")[1].split("## Quality")[0]
    command = re.search(r"^`rcm (.*?)`", use, re.MULTILINE)
    assert command is not None
    done = CliRunner().invoke(app, shlex.split(command[1]), catch_exceptions=False)
    assert done.exit_code == 0
    assert (tmp_path / "sample.png").stat().st_size > 0
    lines = [line for line in use.splitlines() if line.startswith("    ") or not line]
    snippet = textwrap.dedent("\n".join(lines)).strip()
    if family == "cosmos":  # counts in sigma, infinite at the first of our times
        assert not snippet
        assert "EDM's sigma, which is infinite at this student's" in use.split("`rcm sample")[0]
        return
    assert ("text_encoder_3=None, tokenizer_3=None" in snippet) == (family == "sd3 without T5")
    made = []
    for _ in range(2):
        names: dict[str, Any] = {}
        exec(snippet, names)
        made.append(np.asarray(names["sample"]))
    assert np.array_equal(*made)
    assert np.isfinite(made[0]).all()
    assert made[0].std() > 0

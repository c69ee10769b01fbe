"""prompts: train, validation and test prompts, disjoint and hashed; ``runs/prompts/{prompts.parquet,prompts.json}``."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rcm_core.config.sections import Params
from rcm_core.data.prompts import FEWEST, SPLITS, read_prompts, refuse_overlap
from rcm_core.execution import Executor
from rcm_core.record import dump, hash_inputs, write_record
from rcm_core.registry import find_benchmark
from rcm_core.storage.files import atomic, write_json
from rcm_core.storage.run_folder import RunFolder

STAGE = "prompts"


def run(params: Params, workspace: Path, executor: Executor) -> None:  # noqa: ARG001 - nothing to distribute
    """Check the prompt files, then write one table and the hash of every split."""
    files = {split: str(getattr(params.prompts, split)) for split in SPLITS}
    splits = {
        split: read_prompts(workspace / name, FEWEST if split == "train" else 1)
        for split, name in files.items()
    }
    refuse_overlap(splits)
    data = find_benchmark(params.teacher.data)
    rows = [
        {"split": split, "prompt": prompt, "label": data.label(prompt)}
        for split, prompts in splits.items()
        for prompt in prompts
    ]
    inputs = hash_inputs(workspace, list(files.values()))
    import pandas as pd  # imported late: the checks do not need it

    with write_record(STAGE, workspace, dump(prompts=params.prompts), inputs, None, "cpu"):
        run = RunFolder.of(workspace)
        with atomic(run.prompts_file) as temporary:
            pd.DataFrame(rows).to_parquet(temporary, index=False)
        facts = {
            split: {"count": len(prompts), "sha256": hashlib.sha256("\n".join(prompts).encode()).hexdigest()}
            for split, prompts in splits.items()
        }
        write_json(run.prompt_hashes_file, facts)

"""The model card of a published student: description, use, quality, lineage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rcm_core.diffusion.guidance import calls_per_step
from rcm_core.evaluation.metric import shown_metrics
from rcm_core.evaluation.report.formatting import markdown_table
from rcm_core.samplers.few_step import Sampler

KINDS = {"renoise": "new noise after each step", "euler": "deterministic, Euler steps"}
CALLS = {
    "wan": "num_frames={frames}, max_sequence_length={length}",
    "sd3": "",
    "longcat": "enable_prompt_rewrite=False",
    "sana": "use_resolution_binning=False",
}
"""Further arguments of the pipeline call, by family; for families whose diffusers pipelines accept our times."""
OTHERS = {
    "cosmos": "diffusers' pipelines of Cosmos-Predict2 pass times as EDM's sigma, which is infinite at this student's"
    " first time, so they cannot sample it; use this command:",
}
"""Reasons, by family, why its diffusers pipelines cannot sample our students; the ``rcm sample`` command follows."""
ABSENT = {"sd3": ("text_encoder_3", "tokenizer_3"), "longcat": ("text_processor",)}
"""Optional parts of a pipeline by family, which diffusers requires unless the call passes None. ``facts["absent"]`` has
the parts that a student lacks; without that key it lacks all of them.
"""


def model_card(
    facts: dict[str, Any], sampler: Sampler, quality: dict[str, Any], name: str, pixels: tuple[int, ...]
) -> str:
    """Return Markdown with the YAML header that model hubs read; the same facts give the same text.

    ``pixels``: channels, frames, height and width of a sample, as the pipeline call requests it.
    """
    teacher = facts["teacher"]
    times = "; ".join(", ".join(f"{angle:.4f}" for angle in angles) for angles in sampler.times)
    fewest, kind = min(facts["steps"]), "png" if pixels[1] == 1 else "mp4"
    return f"""---
license: {teacher["licence"].lower()}
library_name: diffusers
tags: [few-step, distillation, {facts["method"]["name"]}]
---

# {name} {facts["version"]}

A student that samples in {", ".join(map(str, facts["steps"]))} steps, distilled by {facts["method"]["name"]} from the
teacher `{teacher["source"]}` ({teacher["steps"]} steps with guidance {teacher["guidance"]:g}, which is
{calls_per_step(teacher["guidance"]) * teacher["steps"]} network calls) with rcm-distill.

## Use
{_in_diffusers(facts, pixels, fewest)}
`rcm sample --model "this folder" --prompt "a prompt" --steps {fewest} --out sample.{kind}`
(pip install rcm-distill) samples the same student from seeds of its own (`--seed`). Guidance is distilled in: there is
none to be set. The sampler ({KINDS[sampler.kind]}) is the scheduler in this folder; it has times for
{", ".join(map(str, sampler.steps))} steps.

## Quality

On held-out prompts and images; 95 % bootstrap intervals in brackets. Frechet distance: lower is better.

{_quality_table(facts["steps"], quality)}

Protocol `{quality["protocol"]["hash"][:12]}`: {quality["protocol"]["description"]}

## Lineage

| | |
|---|---|
| teacher | `{teacher["source"]}`, content hash `{teacher["hash"]}`, licence {teacher["licence"]} |
| benchmark | {teacher["data"]} |
| method | {facts["method"]["name"]} |
| sampler | {sampler.kind}; angles {times} |
| checkpoint | {facts["choice"]["name"]} (chosen on the validation split) |
| version | `{facts["version"]}`: hash of the weights and configuration in this folder |

## Settings of the method

| setting | value |
|---|---|
{settings_table(facts["method"])}
"""


def _in_diffusers(facts: dict[str, Any], pixels: tuple[int, ...], steps: int) -> str:
    """Return the example of the pipeline call, or the reason why this family's pipelines cannot be used."""
    family = facts["family"]
    if family not in CALLS:
        return f"\n{OTHERS[family]}\n" if family in OTHERS else ""
    _, frames, height, width = pixels
    rest = CALLS[family].format(frames=frames, length=facts["text_length"])
    arguments = ", ".join(filter(None, (f"height={height}, width={width}", rest)))
    absent = "".join(f", {name}=None" for name in facts.get("absent", ABSENT.get(family, ())))
    output = "frames" if family == "wan" else "images"
    return f"""
    import rcm_core  # pip install rcm-distill: the scheduler class
    import torch
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained("this folder"{absent})
    generator = torch.Generator().manual_seed(0)  # the same seed gives the same sample
    sample = pipe(
        "a prompt", num_inference_steps={steps}, guidance_scale=1.0, generator=generator, {arguments}
    ).{output}[0]

A list of generators, one for each prompt, gives every sample of a batch a seed of its own.
"""


def settings_table(method: Mapping[str, Any], above: str = "") -> str:
    """Return Markdown rows, one per setting with its value in YAML; nested settings have dotted names."""
    rows = []
    for key, value in method.items():
        if isinstance(value, Mapping) and value:
            rows.append(settings_table(value, f"{above}{key}."))
        elif above or key != "name":
            text = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
            rows.append(f"| {above}{key} | `{text}` |")
    return "\n".join(rows)


def _quality_table(steps: list[int], quality: dict[str, Any]) -> str:
    """Return a Markdown table with a row per sampler and a column per metric."""
    shown = [row for row in ("teacher", "teacher_1", *(f"student_{s}" for s in steps)) if row in quality]
    columns = _columns(quality["teacher"])
    rows = [[row, *(_cell(quality[row][column]) for column in columns)] for row in shown]
    return markdown_table(["sampler", *columns], rows)


def _columns(known: dict[str, Any]) -> list[str]:
    """Return the names of the card's metrics that ``known`` has, without substitutes for others that it has."""
    return [
        metric.name
        for metric in shown_metrics("card")
        if metric.name in known and metric.stands_in_for not in known
    ]


def _cell(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"

"""The command ``rcm``. Heavy imports are inside the commands, so ``rcm --help`` is fast."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from infra.interrupt import unwind_on_signals
from rcm_core.errors import InputError, exit_for_bad_input
from rcm_core.storage.run_folder import RELATIVE

app = typer.Typer(
    help="Distils a slow diffusion model into a student that samples in 1-4 steps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Hydra overrides as for `dvc exp run -S`: method=scm train.batch=32"),
]


@app.command()
def distill(
    overrides: Overrides = None,
    teacher: Annotated[
        str | None, typer.Option(help="A name in conf/teacher, a folder, or s3://bucket/prefix.")
    ] = None,
) -> None:
    """Run all stages on this machine, teacher to published student, through a local Prefect."""
    from infra.commands.doctor import project_root
    from infra.commands.summary import show
    from infra.prefect.local import complaint
    from infra.prefect.local import distill as run

    root = project_root()
    outcome = run(root, overrides or [], teacher)
    if outcome.state != "COMPLETED":
        if found := complaint(outcome.message):
            raise found
        print(f"error: the run ended as {outcome.state}: {outcome.message} ({outcome.page})", file=sys.stderr)
        raise typer.Exit(1)
    show(root, outcome.page)


@app.command()
def plan(
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="h200, h100, a100-80gb, l40s, ...")] = "h200",
    gpus: Annotated[int | None, typer.Option(help="Number of GPUs (train.workers).", min=1)] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A name in data/models, or a folder together with teacher=<preset>; weights are not read."
        ),
    ] = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of the GPU's peak rate that training reaches.", min=0.01, max=1)
    ] = 0.3,
    search: Annotated[bool, typer.Option(help="Also search for the cheapest layout that fits.")] = True,
) -> None:
    """Estimate a run's memory per GPU and its time, and how to distribute it over the GPUs."""
    from infra.commands.doctor import project_root
    from infra.commands.plan import compose_planned
    from infra.commands.plan import plan as show

    root = project_root()
    show(root, compose_planned(root, overrides or [], teacher, gpus), gpu, utilisation, search)


@app.command()
def up() -> None:
    """Start the local Prefect server and worker, deploy prefect.yaml, and leave them running."""
    from infra.commands.doctor import project_root
    from infra.prefect.local import prefect_up

    with prefect_up(project_root()) as started:
        print(f"Prefect: {started.url.removesuffix('/api')} (stop it with `rcm stop`)")


@app.command()
def stop() -> None:
    """Stop the local Prefect server, the worker and the worker's runs."""
    from infra.commands.doctor import project_root
    from infra.prefect.server import stop as end

    ended = end(project_root())
    print(f"stopped: {', '.join(ended)}" if ended else "no server or worker of rcm is running")


@app.command()
def run(
    stage: Annotated[str, typer.Argument(help="teacher, prompts, trajectories, train, ...")],
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    """Run one stage, even if it is up to date (DVC does not record it)."""
    from infra.launch import run_stage

    run_stage(stage, params, Path.cwd())


@app.command()
def sample(
    out: Annotated[
        Path,
        typer.Option(
            help="Output: .png, .gif or .mp4 for all samples side by side; a folder for one file each (clips: .mp4)."
        ),
    ],
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt; repeat the option for several.")] = None,
    prompts_file: Annotated[Path | None, typer.Option(help="File with a prompt per line.")] = None,
    steps: Annotated[int, typer.Option(help="Network calls per sample.", min=1)] = 1,
    seed: Annotated[
        int, typer.Option(help="Sample i starts from the noise of (seed, i).", min=0, max=2**63 - 1)
    ] = 0,
    model: Annotated[Path, typer.Option(help="Folder of a published student.")] = RELATIVE.published,
    batch: Annotated[int, typer.Option(help="Batch size; does not change the samples.", min=1)] = 16,
    force: Annotated[
        bool, typer.Option("--force", help="Also overwrite files that `rcm sample` did not write.")
    ] = False,
) -> None:
    """Generate samples with the published student."""
    from infra.commands.outputs import refuse_others, refuse_place

    refuse_place(out)
    refuse_others(out, force)
    prompts = collect_prompts(prompt or [], prompts_file)
    if not model.is_dir():
        raise InputError(
            f"{model} does not exist; create it with `rcm distill`, or name a student with --model"
        )
    import torch
    from rich.console import Console
    from rich.progress import track

    from infra.commands.save_samples import refuse_nonfinite, refuse_suffix, save_each, save_samples
    from rcm_core.samplers.jobs import pipeline_job, sample_pixels, split_jobs

    whole = pipeline_job(model, prompts, steps, seed, "auto")
    if out.suffix:
        refuse_suffix(out, whole.teacher.shape[1])  # before any work
    jobs = split_jobs(whole, batch)
    shown = track(jobs, "sampling", console=Console(stderr=True), disable=len(jobs) == 1)
    parts = (refuse_nonfinite(sample_pixels(job), model) for job in shown)
    if out.suffix:
        save_samples(torch.cat(list(parts)), out)
        print(out)
    else:
        print(f"{out}: {save_each(parts, out)} files")


@app.command()
def check_model(
    place: Annotated[Path, typer.Argument(help="A pipeline in diffusers layout, or your own adapter file.")],
    pipeline: Annotated[Path | None, typer.Option(help="The pipeline, if PLACE is an adapter.")] = None,
    blocks: Annotated[int, typer.Option(help="Number of the network's blocks to run.", min=1)] = 4,
    codec: Annotated[bool, typer.Option(help="Load text encoder and VAE too.")] = True,
    variant: Annotated[
        str | None, typer.Option(help="Variant of the weights, as teacher.variant: fp16, bf16.")
    ] = None,
) -> None:
    """Check that a model can be distilled: tangents, parameterisation, guidance, sharding units, files."""
    from infra.commands.families import family_at
    from infra.commands.tables import print_findings
    from rcm_core.pipelines.variants import plain_view
    from rcm_core.preflight.check_model import check_model as check

    family, folder = family_at(place, pipeline)
    folder = folder if variant is None else plain_view(folder, variant)
    findings = list(check(family, folder, blocks, codec))
    rows = [("ok" if f.passed else "FAILED", f.check, f.detail) for f in findings]
    print_findings(("", "check", "found"), rows)
    failed = [finding.check for finding in findings if not finding.passed]
    if failed:
        print(f"error: {len(failed)} of {len(findings)} checks failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help=".pth, .pt or .safetensors, or a folder of the latter.")],
    like: Annotated[Path, typer.Option(help="A pipeline in diffusers layout with the same architecture.")],
    out: Annotated[Path, typer.Option(help="Output: a copy of --like with the checkpoint's network.")],
    weights: Annotated[
        str | None, typer.Option(help="ema or net, if the checkpoint has both; default: ema.")
    ] = None,
) -> None:
    """Convert a raw checkpoint to a pipeline: the original Wan and Cosmos files, and those of NVlabs/rcm."""
    from infra.commands.families import family_of
    from infra.commands.outputs import refuse_place
    from rcm_core.pipelines.convert import PREFIXES
    from rcm_core.pipelines.convert import convert as make

    refuse_place(out)
    if weights not in (None, *PREFIXES):
        raise InputError(f"--weights {weights}: expected {' or '.join(PREFIXES)}")
    family = family_of(like)
    if not hasattr(family, "RAW"):
        raise InputError(
            f"{like} belongs to a family without raw checkpoints; expected a Wan or Cosmos pipeline"
        )
    count = make(family.LAYOUT, family.RAW, checkpoint, like, out, weights)
    print(f"{out}: {count:,} parameters")


@app.command()
def tune_times(
    steps: Annotated[
        int, typer.Option(help="Largest number of steps to search times for.", min=1, max=8)
    ] = 4,
    samples: Annotated[
        int | None, typer.Option(help="Samples per list of times (default: select.samples).", min=20)
    ] = None,
    params: Annotated[Path, typer.Option(help="Parameters.")] = Path("params.yaml"),
) -> None:
    """Search the times of the student's sampler on the validation split, one after another, up to --steps."""
    from infra.commands.tune_times import tune_times as tune

    tune(params, Path.cwd(), steps, samples)


@app.command()
def doctor() -> None:
    """Show what is installed, the available backends and devices, and how to install what is missing."""
    from infra.commands.doctor import examine
    from infra.commands.tables import print_findings

    findings = examine(Path.cwd())
    rows = [(f.subject, f.found + (f"; to fix it: {f.remedy}" if f.remedy else "")) for f in findings]
    print_findings(("", "found"), rows)
    missing = [f.subject for f in findings if f.needed and f.remedy]
    if missing:
        raise InputError(f"missing: {', '.join(missing)}; the table shows how to fix it")


def main() -> None:
    """Run the command. Bad input: one sentence and status 2; an outage: 75; an interrupt stops all that it started."""
    unwind_on_signals()
    with exit_for_bad_input():
        try:
            status = app(standalone_mode=False)
        except TyperException as error:  # an error of the command line; without a command: the help
            raise InputError(error.format_message()) from error
    sys.exit(status if isinstance(status, int) else 0)


def collect_prompts(given: list[str], file: Path | None) -> list[str]:
    """Return the prompts of --prompt, then those of --prompts-file, cleaned as in the stages."""
    from rcm_core.data.prompts import COLUMNS, clean_text, read_lines

    prompts = [clean_text(prompt, "--prompt") for prompt in given]
    if "" in prompts:
        raise InputError("--prompt is empty; expected text, as in --prompt 'a handwritten seven'")
    if file is not None:
        if not file.is_file():
            raise InputError(
                f"--prompts-file {file} does not exist; give a text file with a prompt per line, or a table with a"
                f" column {COLUMNS[0]}"
            )
        prompts += [line for line in read_lines(file) if line]
    if not prompts:
        raise InputError("no prompt; give --prompt 'a handwritten seven' or --prompts-file")
    return prompts


if __name__ == "__main__":
    main()

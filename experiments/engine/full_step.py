"""Profile of a training iteration on one GPU: ``python -m experiments.engine.full_step [override ...]``.

Without overrides: rCM on Wan2.1 1.3B, 81 frames of 480 x 832; student, frozen teacher and fake score with random
weights, bfloat16, activation checkpointing by blocks. ``docs/results/full-step.json`` has the median milliseconds (by
device events) and the peak memory of every kind of iteration (``rcm plan`` counts them) and of its passes by kind. It
also has the memory held between iterations, and the prediction of ``rcm plan``.

``--rehearse``: the same on a small network of the same family, on any machine. It writes nothing, and its times are
not meaningful.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from rcm_kernels.plain import fastest_attention
from rich.console import Console

from experiments.comparison.measurements import machine
from experiments.engine.assembled import Assembled, assemble, write_random
from experiments.engine.small import RESULTS, ROOT
from infra.commands.plan import compose_planned
from infra.commands.tables import print_table
from infra.executors.local import _process_group
from rcm_core.config.sections import Params
from rcm_core.device import resolve_device
from rcm_core.errors import BAD_INPUT, InputError
from rcm_core.networks.denoiser import Denoiser
from rcm_core.preflight.estimate import estimate
from rcm_core.preflight.held_memory import held_by
from rcm_core.preflight.network_calls import Kind, kind_of, kinds
from rcm_core.preflight.teacher_spec import Model, model_of
from rcm_core.storage.files import write_json
from rcm_core.training.distill import build_method
from rcm_core.units import MIB

TEACHER = "wan-1.3b"
OVERRIDES = ("method=rcm-wan-1.3b", "train.batch=1", "train.device=auto")
SMALL = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 64, "text_dim": 32}
SMALL_SHAPE, SMALL_TEXT = (2, 8, 8), 8
"""Shape of latents without channels; tokens of a prompt."""
ROUNDS = 3
"""Timed iterations of every kind, after one warm-up iteration."""


class Span(NamedTuple):
    """A part of an iteration."""

    name: str
    begin: Any
    end: Any


class Parts:
    """Start, end and peak memory of the passes through the networks and of the optimiser steps."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spans = device, list[Span]()
        self.peaks: dict[str, int] = {}
        self.samples: Counter[str] = Counter()
        self._open: list[tuple[str, Any]] = []

    def begin(self, name: str) -> None:
        self._look()
        self._open.append((name, self._now()))

    def end(self) -> None:
        self._look()
        name, begin = self._open.pop()
        self.spans.append(Span(name, begin, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """Return the milliseconds by part since the last call."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found: dict[str, float] = {}
        for name, begin, end in self.spans:
            spent = begin.elapsed_time(end) if self.device.type == "cuda" else 1000 * (end - begin)
            found[name] = found.get(name, 0.0) + spent
        self.spans.clear()
        return found

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _look(self) -> None:
        """Credit the peak memory since the last look to all open parts."""
        if self.device.type == "cuda":
            for name, _ in self._open:
                self.peaks[name] = max(self.peaks.get(name, 0), torch.cuda.max_memory_allocated(self.device))
            torch.cuda.reset_peak_memory_stats(self.device)


@contextmanager
def taken_apart(made: Assembled, parts: Parts) -> Iterator[None]:
    """Record every pass and every parameter update of the block in ``parts``."""

    def entering(role: str) -> Any:
        def before(module: Denoiser, inputs: Any) -> None:  # noqa: ARG001
            name = f"{role}, {kind_of(inputs[0])}"
            parts.samples[name] += len(inputs[0])
            parts.begin(name)

        return before

    def leaving(module: Denoiser, inputs: Any, output: Any) -> None:  # noqa: ARG001
        parts.end()

    updater = made.stepper.updater
    move = updater.move

    def move_and_time(*given: Any) -> dict[str, float]:
        parts.begin("optimisers and averages")
        norms = move(*given)
        parts.end()
        return norms

    with ExitStack() as stack:
        for role, net in made.networks.items():
            stack.callback(net.register_forward_pre_hook(entering(role)).remove)
            stack.callback(net.register_forward_hook(leaving).remove)
        stack.callback(setattr, updater, "move", move)
        updater.move = move_and_time  # type: ignore[method-assign]
        yield


def iterations(made: Assembled, kind: Kind, device: torch.device) -> dict[str, Any]:
    """Return medians and peaks of an iteration of this kind."""
    parts, found = Parts(device), list[dict[str, float]]()
    made.stepper.train_step(kind.step)
    with taken_apart(made, parts):
        for _ in range(ROUNDS):
            parts.begin("iteration")
            made.stepper.train_step(kind.step)
            parts.end()
            found.append(parts.milliseconds())
    medians = {name: statistics.median(each[name] for each in found) for name in found[0]}
    whole = medians.pop("iteration")
    rest = whole - sum(medians.values())
    samples = {name: count / ROUNDS for name, count in parts.samples.items()}
    accumulate = made.stepper.settings.accumulate
    more = sum(  # other iterations of the kind call networks without gradient more often
        (accumulate * count / samples[name] - 1) * medians[name]
        for role, count in kind.plain.items()
        if (name := f"{role}, plain") in samples
    )
    return {
        "step": kind.step,
        "share": kind.share,
        "milliseconds": whole,
        "milliseconds_on_average": whole + more,
        "samples": samples,
        "parts": dict(sorted(medians.items())) | {"losses and backward passes": rest},
        "peak_mebibytes": {name: peak / MIB for name, peak in sorted(parts.peaks.items())},
    }


def tangent_times_plain(found: list[dict[str, Any]]) -> float | None:
    """Return the ratio of the student's tangent pass to its pass without gradient; None if it lacks either."""
    tangent, plain = (
        [each["parts"][name] / each["samples"][name] for each in found if name in each["parts"]]
        for name in ("student, tangent", "student, plain")
    )
    return float(min(tangent) / min(plain)) if tangent and plain else None


def small(model: Model) -> Model:
    """Return a model of the same family that fits on any machine."""
    shape = (model.shape[0], *SMALL_SHAPE)
    return model._replace(config={**model.config, **SMALL}, shape=shape, text=SMALL_TEXT)


def measure(params: Params, model: Model, device: torch.device) -> dict[str, Any]:
    """Measure every kind of iteration of the training with ``params``."""
    method, guidance = build_method(params.method, params.train.tangent), params.teacher.guidance
    size = params.train.batch // params.train.accumulate
    alike = kinds(method, params.train.iterations, size, guidance, params.teacher.steps)
    predicted = estimate(model, params, fused=device.type == "cuda")
    with TemporaryDirectory() as place, _process_group(), fastest_attention():
        write_random(Path(place), model, device)
        made = assemble(params, model, Path(place), device)
        for kind in alike:  # from here on all optimiser moments exist
            made.stepper.train_step(kind.step)
        found = [iterations(made, kind, device) for kind in alike]
        held = held_by(made.stepper, made.shared or made.frozen, params.train.parallel.offload)
    return {
        "teacher": model.name,
        "latents": list(model.shape),
        "method": params.method["name"],
        "batch": params.train.batch,
        "precision": params.train.parallel.precision,
        "checkpointing": params.train.parallel.checkpointing,
        "iterations": found,
        "milliseconds": sum(each["share"] * each["milliseconds_on_average"] for each in found),
        "tangent_times_plain": tangent_times_plain(found),
        "held_mebibytes": {name: size / MIB for name, size in held.items()},
        "peak_mebibytes": max(each["peak_mebibytes"].get("iteration", 0.0) for each in found),
        "predicted": {"peak_mebibytes": predicted.peak / MIB, "flops": predicted.flops},
        "machine": machine(),
    }


def show(found: Mapping[str, Any], console: Console) -> None:
    """Print the result as tables."""
    for each in found["iterations"]:
        title = f"iteration {each['step']}, {each['share']:.1%} of all"
        peaks, spent = each["peak_mebibytes"], each["parts"] | {"iteration": each["milliseconds"]}
        rows = [(n, f"{t:.1f}", f"{peaks[n]:.0f}" if n in peaks else "") for n, t in spent.items()]
        print_table(("", "ms", "MiB at most"), rows, title=title)
    held = ", ".join(f"{name} {size:.1f}" for name, size in found["held_mebibytes"].items())
    console.print(f"held between iterations, MiB: {held}")
    console.print(f"the plan: at most {found['predicted']['peak_mebibytes']:.0f} MiB")
    ratio = found["tangent_times_plain"]
    if ratio is not None:
        console.print(f"the student's tangent pass takes {ratio:.2f} times a pass without gradient")


def main(arguments: list[str] | None = None) -> int:
    """Run the profile. Exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.engine.full_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="overrides of the parameters, as for rcm plan")
    parser.add_argument("--teacher", default=TEACHER, help=f"a published network; default: {TEACHER}")
    parser.add_argument("--rehearse", action="store_true", help="use a small network, on any machine")
    try:
        _run(parser.parse_args(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return 0


def _run(options: argparse.Namespace) -> None:
    device = resolve_device("auto")
    if device.type != "cuda" and not options.rehearse:
        raise InputError(
            "there is no GPU here, but the measurement needs one; run this on a machine with a GPU, or with --rehearse"
        )
    params = compose_planned(ROOT, [*OVERRIDES, *options.overrides], options.teacher, 1)
    model = model_of(params.teacher, ROOT)
    if options.rehearse and params.teacher.family != "wan":
        raise InputError(
            f"--rehearse supports only the family wan, but {options.teacher} belongs to another; omit --rehearse"
        )
    if "routes" in build_method(params.method, params.train.tangent).requirements.needs:
        raise InputError(
            f"method {params.method['name']} needs routes, which this measurement lacks; choose another method"
        )
    found = measure(params, small(model) if options.rehearse else model, device)
    show(found, Console())
    if not options.rehearse:
        write_json(RESULTS / "full-step.json", {**found, "gpu": torch.cuda.get_device_name(device)})


if __name__ == "__main__":
    sys.exit(main())

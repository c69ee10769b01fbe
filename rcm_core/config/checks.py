"""Checks of params before any work: combinations that contradict each other, and sizes beyond the machine's memory."""

from __future__ import annotations

import math

import psutil

from rcm_core.config.metrics import takes_features
from rcm_core.config.sections import Params
from rcm_core.errors import InputError
from rcm_core.units import GIB

FEWEST = 20
"""Fewest samples for a Frechet distance."""
BYTES = 4
"""Bytes of a float32."""
STATES = 8
"""Activations that a block saves for backward, in units of its hidden states."""


def refuse_contradictions(params: Params, where: str) -> None:
    """Raise InputError if an interval or a count is larger than the number it divides, or too small for the metric."""
    evaluate, select, mini = params.evaluate, params.select, params.teacher.mini
    _refuse_short(params, where)
    selected = select.samples if takes_features(params) else FEWEST
    for key, value in (("select.samples", selected), ("evaluate.samples", evaluate.samples)):
        if value < FEWEST:
            raise InputError(
                f"{where}: {key} = {value}, but a Frechet distance needs at least {FEWEST} samples; raise it"
            )
    if evaluate.timing_samples > evaluate.samples:
        raise InputError(
            f"{where}: evaluate.timing_samples = {evaluate.timing_samples} is more than evaluate.samples ="
            f" {evaluate.samples}; lower it"
        )
    if evaluate.keep_pixels is not None and params.report.prompts > evaluate.keep_pixels:
        raise InputError(
            f"{where}: report.prompts = {params.report.prompts} rows, but evaluate.keep_pixels ="
            f" {evaluate.keep_pixels} samples are kept; lower report.prompts, or raise evaluate.keep_pixels"
        )
    if mini is None:
        return
    if mini.text_dim % mini.text_heads:
        raise InputError(
            f"{where}: teacher.mini.text_dim = {mini.text_dim} is not divisible by teacher.mini.text_heads ="
            f" {mini.text_heads}; change one of them"
        )
    height, width = params.teacher.shape[2:]
    if params.teacher.source == "mini" and (height % mini.patch or width % mini.patch):
        raise InputError(
            f"{where}: teacher.shape = {list(params.teacher.shape)} has sides that teacher.mini.patch = {mini.patch}"
            " does not divide; change one of them"
        )


def _refuse_short(params: Params, where: str) -> None:
    """Raise InputError if the training ends before some settings take effect; it names each and a value that fits.

    Checkpoints, log lines and probes are not checked: the last iteration always has them. A warm-up that ends with the
    training is listed beside other settings, but is no error by itself.
    """
    train, method = params.train, params.method
    latest = {  # the last iteration, counted from 1, that such a setting may name
        "train.candidate_every": (train.candidate_every, train.iterations),
        "train.lr_decay_from": (train.lr_decay_from, train.iterations),
        "method.warmup": (method.get("warmup"), train.iterations - 1),
        "method.tangent_anneal_start": (method.get("tangent_anneal_start"), train.iterations - 1),
        "method.stage_every": (method.get("stage_every"), train.iterations),
    }
    late = {key: value for key, (value, most) in latest.items() if isinstance(value, int) and value > most}
    if any(value > train.iterations for value in late.values()):
        named = ", ".join(f"{key} = {value}" for key, value in late.items())
        fitting = " ".join(f"-S {key}={_fitting(key, train.iterations)}" for key in late)
        raise InputError(
            f"{where}: train.iterations = {train.iterations} ends before {named} can take effect; train longer, or also"
            f" give {fitting}"
        )


def _fitting(key: str, iterations: int) -> int:
    """Return a value of ``key`` for ``iterations``: one candidate at the end; a fifth of them for the others."""
    if key == "train.candidate_every":
        return iterations
    return max(iterations // 5, int(key != "method.warmup"))


def refuse_oversized(params: Params, where: str) -> None:
    """Raise InputError if a setting makes a stage hold more at once than this machine's memory."""
    memory = psutil.virtual_memory().total
    evaluate, select, train = params.evaluate, params.select, params.train
    sample = BYTES * math.prod(params.teacher.shape)
    needs = {
        "trajectories.batch": sample * (params.trajectories.batch or params.trajectories.shard_size),
        "train.batch": sample * train.batch // (train.workers * train.accumulate),
        "select.samples": sample * select.samples,
        "evaluate.samples": sample * evaluate.samples,
        "evaluate.diversity_samples": sample * evaluate.diversity_prompts * evaluate.diversity_samples,
        "select.bootstrap": 8 * select.bootstrap * select.samples,
        "evaluate.bootstrap": 8 * evaluate.bootstrap * evaluate.samples,
    }
    mini = params.teacher.mini
    if mini is not None and params.teacher.source == "mini":
        hidden, ffn = mini.heads * mini.head_dim, mini.ffn_dim
        _, frames, height, width = params.teacher.shape
        tokens = frames * -(-height // mini.patch) * -(-width // mini.patch)
        states = BYTES * STATES * mini.layers * tokens * hidden * mini.batch // mini.workers
        weights = BYTES * STATES * mini.layers * hidden * (4 * hidden + 2 * ffn)
        needs |= {"teacher.mini.batch": states, "teacher.mini.layers": weights}
        needs["teacher.mini.text_dim"] = BYTES * STATES * mini.text_dim * (mini.text_dim + mini.text_length)
    for key, size in needs.items():
        if size > memory:
            raise InputError(
                f"{where}: {key} needs about {size / GIB:,.0f} GiB with teacher.shape = {list(params.teacher.shape)},"
                f" and this machine has {memory / GIB:.0f} GiB; lower one of them"
            )

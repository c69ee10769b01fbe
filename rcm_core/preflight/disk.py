"""Bytes on disk of each stage, before a run: from the shapes of the network, the trajectories and the params alone."""

from __future__ import annotations

import math
from typing import NamedTuple

from rcm_core.config.sections import Params
from rcm_core.preflight.teacher_spec import Model
from rcm_core.training.disk_usage import (
    CHECKPOINTS,
    candidate_bytes,
    checkpoint_bytes,
    count_candidates,
    trained_weights,
)


class Written(NamedTuple):
    """Files that a stage writes."""

    what: str
    number: int
    each: int
    """Bytes of one file."""

    @property
    def total(self) -> int:
        return self.number * self.each


def disk_use(model: Model, params: Params) -> list[Written]:
    """Return the files of each stage if they can be linked, without the small ones (samples of evaluate, reports).

    A given teacher is not copied, and select links what it chooses; a LoRA is merged by publish. What a student shares
    with a given teacher beside the network is copied once by publish, where there are no reflinks, and is not in it.
    """
    section, precision = params.train, params.teacher.precision
    shapes = [tuple(value.shape) for value in model.on_meta().state_dict().values()]
    whole, trained = sum(math.prod(shape) for shape in shapes), trained_weights(section, shapes)
    published = 2 if (section.candidate_precision or precision) == "bfloat16" else 4
    return [
        Written("teacher: network, trained here", int(params.teacher.source == "mini"), 4 * whole),
        Written("trajectories: samples", params.trajectories.samples, _sample(model, params)),
        Written("train: candidates", count_candidates(section), candidate_bytes(section, precision, trained)),
        Written("train: checkpoints", CHECKPOINTS, checkpoint_bytes(section, trained)),
        Written("publish: merged network", int(section.lora is not None), published * whole),
    ]


def _sample(model: Model, params: Params) -> int:
    """Return the bytes of a sample's states and text, float32."""
    section = params.trajectories
    routes = 2 * params.teacher.steps + 1 if section.keep_trajectories else 0
    apart = section.real and section.source is None
    text = sum(value.numel() * value.element_size() for value in model.conditions(1).values())
    return 4 * math.prod(model.shape) * (1 + routes + apart) + (1 + apart) * text

"""Checks that data, family and params meet a method's requirements, before any work starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rcm_core.config.sections import TrainSection, TrajectoriesSection
from rcm_core.errors import InputError
from rcm_core.protocols import EMBEDDED, Family, MethodRequirements

SETTINGS = {"routes": "trajectories.keep_trajectories", "real": "trajectories.real"}
"""Part of a batch -> the setting that makes the trajectories stage keep it."""


def refuse_impossible(
    requirements: MethodRequirements, family: Family, provides: frozenset[str], lr: Mapping[str, float]
) -> None:
    """Raise InputError if the training data, the family or the learning rates lack something the method needs."""
    missing = sorted(requirements.needs - provides)
    if missing:
        remedy = " and ".join(f"{SETTINGS[name]} to true" for name in missing if name in SETTINGS)
        raise InputError(
            f"the method needs {', '.join(missing)}, but the training data provides {', '.join(sorted(provides))};"
            + (f" set {remedy}, or choose another method" if remedy else " choose another method")
        )
    embedded = requirements.student_modules & set(EMBEDDED)
    if embedded and family.time_layer is None:
        remedy = "set method.guidance and method.guidance_at to null, or " if embedded == {"guidance"} else ""
        raise InputError(
            f"the method embeds {', '.join(sorted(embedded))}, but this family has no time embedding to add it to;"
            f" {remedy}choose another method"
        )
    if unrated := sorted(requirements.roles - lr.keys()):
        raise InputError(
            f"train.lr has {', '.join(sorted(lr))}, but the method also trains {', '.join(unrated)};"
            f" add train.lr.{unrated[0]}"
        )


def refuse_split(requirements: MethodRequirements, family: Family, context: int) -> None:
    """Raise InputError if states cannot be split over ``context`` ranks."""
    if context == 1:
        return
    if family.tokens is None:
        raise InputError(
            f"train.parallel.context is {context}, but states of this family cannot be split over workers; set it to 1"
        )
    if requirements.heads:
        raise InputError(
            f"train.parallel.context is {context}, but the method's discriminator sees whole states; set it to 1, or"
            " choose a method without one"
        )


def refuse_lora(requirements: MethodRequirements, train: TrainSection) -> None:
    """Raise InputError if LoRA does not support the method or the params."""
    if train.lora is None:
        return
    if embedded := sorted(requirements.student_modules & set(EMBEDDED)):
        raise InputError(
            f"the method embeds {', '.join(embedded)}, which train.lora does not support; set train.lora to null, or"
            " choose a method (or method.guidance: null) that does not"
        )
    if train.warm_start is not None:
        raise InputError(
            "train.lora begins at the teacher and train.warm_start at an earlier student; set one of them to null"
        )


def offloadable(requirements: MethodRequirements) -> tuple[Literal["teacher", "fake"], ...]:
    """Return the roles that may be offloaded to CPU: the teacher, and a fake score in no target-network update."""
    tied = {role for follow in requirements.follows for role in (follow.target, follow.source)}
    return ("teacher", "fake") if "fake" in requirements.roles - tied else ("teacher",)


def refuse_offload(requirements: MethodRequirements, train: TrainSection) -> None:
    """Raise InputError if an offloaded network does not exist, takes part in a target-network update, or shares its
    weights with the student.
    """
    away = train.parallel.offload
    if not away:
        return
    if set(away) - set(offloadable(requirements)):
        why = "moves towards another network" if "fake" in requirements.roles else "does not have"
        raise InputError(
            f"train.parallel.offload names fake, which the method {why}; remove it from the list"
        )
    if train.lora is not None:
        raise InputError(
            f"train.parallel.offload names {', '.join(away)}, whose weights train.lora shares with the student; set"
            " train.parallel.offload to [], or train.lora to null"
        )


def refuse_import(requirements: MethodRequirements, section: TrajectoriesSection) -> None:
    """Raise InputError if samples are imported and trajectories required: only the teacher generates those."""
    if section.source is None:
        return
    if "routes" in requirements.needs:
        raise InputError(
            "the method needs routes, which the samples of trajectories.source do not have; set it to null and let the"
            " teacher make them, or choose another method"
        )
    if section.keep_trajectories:
        raise InputError(
            "trajectories.keep_trajectories is true, but the samples of trajectories.source have no routes; set it to"
            " false, or trajectories.source to null"
        )


def list_provided(section: TrajectoriesSection) -> frozenset[str]:
    """Return the parts of a batch that the trajectories of ``section`` provide."""
    kept = {"routes": section.keep_trajectories, "real": section.real}
    return frozenset({"x0", "condition", *(name for name in SETTINGS if kept[name])})

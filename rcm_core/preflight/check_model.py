"""Requirements on a family and a pipeline for distillation, checked on the pipeline itself: ``rcm check-model``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor

from rcm_core.diffusion.guidance import Guided
from rcm_core.errors import named_line
from rcm_core.jvp import flash_jvp, jvp
from rcm_core.networks.denoiser import Denoiser
from rcm_core.pipelines.folder import read_part
from rcm_core.preflight.model_under_check import Subject, cut, in_double
from rcm_core.protocols import Family
from rcm_core.training.checkpointing.checkpoint import write_network

PROMPTS = ("a red cube left of a blue ball", "a photo of three dogs in the snow")
STEP = 1e-7
"""Step of central differences in float64."""


class Finding(NamedTuple):
    """One line of the table."""

    check: str
    passed: bool
    detail: str


Check = Callable[[Subject], str]  # what was found; ModelError says what is wrong


class ModelError(Exception):
    """A check failed."""


def check_model(family: Family, folder: Path, blocks: int, codec: bool) -> Iterator[Finding]:
    """Every check in turn. The network is cut to its first ``blocks`` blocks; ``codec`` loads text encoder and VAE too.

    InputError for a folder that is not whole.
    """
    family.check_folder(folder)
    config = read_part(folder, "transformer/config.json")
    network = family.load_network(folder)
    yield Finding("folder", True, f"{sum(p.numel() for p in network.parameters()):,} parameters, all there")
    checks: dict[str, Check] = {
        "save and load": _round_trip,
        "sharding units": _units,
        "parameterisation": _parameterisation,
        "velocity": _velocity,
        "batch": _batch,
        "condition": _condition,
        "guidance": _guidance,
        "value beside a tangent": _value,
        "tangent": _tangent,
        "time in float32": _time,
    }
    rng = torch.Generator().manual_seed(0)
    x, condition = family.example(config, 2, rng)
    denoiser = Denoiser(network, family, family.parameterisation(folder)).eval()
    subject = Subject(family, folder, denoiser, x, torch.tensor([1.2, 0.4]), condition)
    for name, check in checks.items():
        yield _run(name, check, subject)
        if name == "sharding units":
            cut(network, family.blocks, blocks)
    if codec:
        yield _run("text and pixels", _codec, subject)


def _run(name: str, check: Check, subject: Subject) -> Finding:
    try:
        return Finding(name, True, check(subject))
    except ModelError as error:
        return Finding(name, False, str(error))
    except (
        Exception
    ) as error:  # a user's adapter may raise anything, and the other checks still say something
        return Finding(name, False, named_line(error))


def _round_trip(subject: Subject) -> str:
    """Check that a written student loads again bit for bit."""
    weights = subject.denoiser.network.state_dict()
    with TemporaryDirectory() as place:
        write_network(Path(place) / "transformer", subject.denoiser.network, weights)
        again = subject.family.load_network(Path(place)).state_dict()
    wrong = [name for name, value in weights.items() if not torch.equal(value, again[name])]
    if wrong:
        raise ModelError(f"{len(wrong)} tensors come back otherwise, first: {wrong[0]}")
    return f"{len(weights)} tensors come back bit for bit"


def _units(subject: Subject) -> str:
    """Check that the sharded and checkpointed blocks, and the named layers, exist."""
    network, family = subject.denoiser.network, subject.family
    units = subject.denoiser.blocks()
    kinds = {type(m).__name__ for m in units}
    missing = sorted(set(family.blocks) - kinds)
    if missing:
        raise ModelError(f"no {', '.join(missing)} in the network, which the family names as units")
    for name in filter(None, (family.time_layer, family.last_layer, family.time_features)):
        network.get_submodule(name)
    inside = sum(p.numel() for m in units for p in m.parameters())
    share = inside / sum(p.numel() for p in network.parameters())
    return f"{len(units)} units ({', '.join(sorted(kinds))}) with {share:.0%} of the parameters"


def _parameterisation(subject: Subject) -> str:
    """Check that velocity and output are inverse to each other, and finite on the whole range."""
    own = subject.denoiser.parameterisation
    x, F = (
        subject.x.double(),
        torch.randn(subject.x.shape, generator=torch.Generator().manual_seed(1)).double(),
    )
    for angle in (1e-6, 0.4, 1.2, torch.pi / 2 - 1e-6):
        t = torch.full((len(x),), angle, dtype=torch.float64)
        again = own.velocity(x, t, own.output(x, t, F))
        if not torch.allclose(again, F, rtol=0, atol=1e-12):
            raise ModelError(
                f"at angle {angle:.3g} the velocity of the output of F is off by {_most(again - F):.2g}"
            )
    return "velocity and output are inverse from angle 1e-6 to pi/2 - 1e-6"


def _velocity(subject: Subject) -> str:
    """Check that the output is finite and has the state's shape from data to noise."""
    x, condition, denoiser = subject.x, subject.condition, subject.denoiser
    with torch.no_grad():
        inputs, time = denoiser.parameterisation.to_network(x, subject.t)
        output = subject.family.call(denoiser.network, inputs, time, condition)
    if output.shape != x.shape:  # which broadcasting would hide
        raise ModelError(f"the network's output is {list(output.shape)}, its input {list(x.shape)}")
    for angle in (1e-3, 0.8, torch.pi / 2 - 1e-3):
        with torch.no_grad():
            F = denoiser(x, torch.full((len(x),), angle), condition)
        if F.shape != x.shape or F.dtype != x.dtype:
            raise ModelError(f"{F.dtype} {list(F.shape)} came out, {x.dtype} {list(x.shape)} went in")
        if not F.isfinite().all():
            raise ModelError(f"not finite at angle {angle:.3g}")
    return f"{list(x.shape[1:])} at every angle, finite"


def _batch(subject: Subject) -> str:
    """Check that a sample does not depend on the others of its batch."""
    denoiser, x, t, condition = subject.denoiser, subject.x, subject.t, subject.condition
    with torch.no_grad():
        together = denoiser(x, t, condition)[:1]
        alone = denoiser(x[:1], t[:1], {name: value[:1] for name, value in condition.items()})
    # another batch size may take another matrix kernel: equal to float32 rounding
    gap = _most(together - alone) / _most(together)
    if not gap < 1e-4:
        raise ModelError(f"alone a sample differs by {gap:.2g} of the largest value")
    return f"alone and in a batch: {gap:.1g} apart"


def _condition(subject: Subject) -> str:
    """Check that every part of the condition, the state and the angle changes the output."""
    with in_double(subject) as (F, x, t, condition), torch.no_grad():
        value = F(x, t, condition)
        other = {
            name: {**condition, name: part.flip(0)}
            for name, part in condition.items()
            if not part.equal(part.flip(0))
        }
        changed = {name: F(x, t, given) for name, given in other.items()}
        changed |= {"the state": F(x + 0.1, t, condition), "the angle": F(x, t + 0.1, condition)}
        # far above what rounding in float64 does
        blind = [name for name, found in changed.items() if not _most(found - value) > 1e-9 * _most(value)]
    if blind:
        raise ModelError(f"{', '.join(blind)} changes nothing in what comes out")
    return f"{', '.join(changed)} matter"


def _guidance(subject: Subject) -> str:
    """v_null + s (v_cond - v_null): 1 is the condition alone, 0 the null condition alone, and it is linear between."""
    negative = {name: value.flip(0)[:1] for name, value in subject.condition.items()}
    with in_double(subject) as (F, x, t, condition), torch.no_grad():
        null = {k: v.to(x.dtype).expand_as(condition[k]) for k, v in negative.items()}
        ends = F(x, t, null), F(x, t, condition)
        for scale in (1.0, 0.0, 5.0):
            found = Guided(F, torch.full((len(x),), scale, dtype=x.dtype), null)(x, t, condition)
            expected = ends[0] + scale * (ends[1] - ends[0])
            if not torch.allclose(found, expected, rtol=1e-7, atol=1e-9 * _most(expected)):
                raise ModelError(f"at scale {scale:g} it is off by {_most(found - expected):.2g}")
    return "scale 1 is the condition alone, scale 0 the null condition"


def _value(subject: Subject) -> str:
    """Check that the primal value beside a tangent equals the plain output."""
    with in_double(subject) as (F, x, t, condition), torch.no_grad():
        with flash_jvp():
            value, _ = jvp(lambda s, a: F(s, a, condition), (x, t), (x, torch.ones_like(t)))
        gap = _most(value - F(x, t, condition)) / _most(value)
    if not gap < 1e-9:
        raise ModelError(f"it differs from the plain pass by {gap:.2g} of the largest value")
    return f"{gap:.1g} from the plain pass"


def _tangent(subject: Subject) -> str:
    """Check forward-mode AD against central differences in float64, in the state and in the angle."""
    worst = 0.0
    with in_double(subject) as (F, x, t, condition), torch.no_grad():
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x)
        for name, (dx, dt) in {
            "state": (direction, torch.zeros_like(t)),
            "angle": (torch.zeros_like(x), torch.ones_like(t)),
        }.items():
            with flash_jvp():
                _, found = jvp(lambda s, a: F(s, a, condition), (x, t), (dx, dt))
            ahead, behind = (F(x + h * dx, t + h * dt, condition) for h in (STEP, -STEP))
            expected = (ahead - behind) / (2 * STEP)
            gap = _most(found - expected) / _most(expected)
            # differences: rounding 1e-16 / 1e-7 of a value, and 1e-14 times a third derivative
            if not gap < 1e-5:
                raise ModelError(f"in the {name} it is off by {gap:.2g} of the largest value")
            worst = max(worst, gap)
    return f"{worst:.1g} from central differences"


def _time(subject: Subject) -> str:
    """Check that with bfloat16 weights the time reaches its features in float32."""
    denoiser, x, t, condition = subject.copy(), subject.x, subject.t, subject.condition
    features = denoiser.network.get_submodule(subject.family.time_features)
    seen: list[Tensor] = []
    features.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    with torch.no_grad():
        denoiser(x, t, condition)
        denoiser.network.bfloat16()
        denoiser.compute = torch.bfloat16
        F = denoiser(x, t, condition)
    exact, low = seen[0], seen[-1]
    if low.dtype != torch.float32 or not torch.equal(exact, low):
        raise ModelError(f"it is {low.dtype}, off by {_most(exact.float() - low.float()):.2g}")
    if not F.isfinite().all():
        raise ModelError("what comes out is not finite")
    return "exact beside weights in bfloat16"


def _codec(subject: Subject) -> str:
    """Check that encoded text has one length for any number of prompts, and that decoded pixels are in [0, 1]."""
    codec = subject.family.load_codec(subject.folder)
    several, one = codec.encode_prompts(PROMPTS), codec.encode_text([""])
    for name, value in several.items():
        if not value.isfinite().all():
            raise ModelError(f"{name} is not finite")
        if one[name].shape[1:] != value.shape[1:]:
            raise ModelError(
                f"{name} of an empty negative prompt is {list(one[name].shape[1:])}, of prompts {list(value.shape[1:])}"
            )
    pixels = codec.decode(subject.x[:1])
    if pixels.ndim != 5 or float(pixels.min()) < 0 or float(pixels.max()) > 1:
        raise ModelError(
            f"decoded: {list(pixels.shape)} from {float(pixels.min()):.2g} to {float(pixels.max()):.2g}"
        )
    return f"{codec.length} tokens; {list(subject.x.shape[1:])} is decoded to {list(pixels.shape[1:])}"


def _most(value: Tensor) -> float:
    return float(value.abs().max())

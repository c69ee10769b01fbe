"""The interfaces of rcm-distill in one file: read this first.

Notation (docs/maths.md): ``t`` is the TrigFlow angle in [0, pi/2], ``x`` the noisy state, ``x0`` data, ``z`` unit
noise, ``F`` the velocity dx/dt. Tensors are ``[B, C, T, H, W]`` for states and ``[B]`` for angles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

Present = TypeVar("Present")

EMBEDDED = ("guidance", "end")
"""Extras of a student whose input is added to the time embedding."""

Condition = Mapping[str, Tensor]
"""A network's conditions by name; the first dimension of every tensor is the batch."""

Velocity = Callable[[Tensor, Tensor, Condition], Tensor]
"""``F(x, t, condition)``: the interface of every network above ``models``; ``x`` [B, ...], ``t`` [B]."""


class Parameterisation(Protocol):
    """Conversion between TrigFlow and one network's inputs and outputs."""

    def to_network(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the network's input and time for state ``x`` at angle ``t``."""
        ...

    def velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Return ``F`` from the network's ``output`` at state ``x`` and angle ``t``."""
        ...

    def output(self, x: Tensor, t: Tensor, F: Tensor) -> Tensor:
        """Return the network's output whose velocity is ``F``."""
        ...


class Codec(Protocol):
    """Text encoder and VAE of a pipeline; never loaded in training. Each network is loaded at its first use."""

    length: int
    """Tokens per prompt; longer prompts are truncated, shorter ones padded."""

    def to(self, device: torch.device) -> Codec:
        """Return self, with its networks on ``device`` from now on; their results are on the CPU."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Return the conditions of ``texts``: negative prompts, and prompts unless ``encode_prompts`` differs."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Return the conditions of ``prompts``, with the prefix of the family's pipeline, if any (SANA's has one)."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the latents, the network's training data, of pixels in [-1, 1], ``[B, C, T, H, W]``."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Return pixels in [0, 1], ``[B, C, T, H, W]``."""
        ...


class Network(Protocol):
    """A network as a method sees it: its velocity, and its blocks' features (for discriminators)."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor: ...

    def features(self, x: Tensor, t: Tensor, condition: Condition, blocks: Sequence[int]) -> list[Tensor]:
        """Return the output tokens ``[B, tokens, width]`` of the blocks with these indices."""
        ...

    def log_variance(self, t: Tensor) -> Tensor:
        """Return the log-variance ``[B]`` of the adaptive weighting; only students with that head have it."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Networks:
    """The networks that a method calls; None for networks that this training does not have (:func:`require`).

    Roles name the networks that are trained or follow a trained one. They are a file format: they key ``train.lr`` and
    checkpoints, address random numbers, and name curves.
    """

    student: Network
    teacher: Network | None = None
    """The frozen network; gradients flow to its inputs."""
    guided_teacher: Velocity | None = None
    """The teacher's guided velocity, without gradient; ``condition["guidance"]`` [B] sets a scale per sample."""
    unconditional_teacher: Velocity | None = None
    """The teacher's velocity for the negative prompt, without gradient."""
    fake_score: Network | None = None
    """The network that learns the score of the student's samples (role "fake")."""
    target: Network | None = None
    """The student's target network (role "target")."""
    discriminator: nn.Module | None = None
    """Heads on a network's features (role "heads")."""

    @classmethod
    def by_role(cls, trained: Mapping[str, Any], **teachers: Any) -> Networks:
        """Return the networks of a training from ``trained``, the trained and following networks by role."""
        return cls(**{FIELDS[role]: network for role, network in trained.items()}, **teachers)


FIELDS = {"student": "student", "fake": "fake_score", "target": "target", "heads": "discriminator"}
"""Role -> field of :class:`Networks`."""


def require(network: Present | None) -> Present:
    """Return a network that the method's requirements guarantee; AssertionError if it is None."""
    assert network is not None
    return network


class Tokens(NamedTuple):
    """Positions of a state's tokens in a network, so that they can be split over ranks."""

    entry: str
    """Name of the submodule whose ``hidden_states`` are the first tokens [B, tokens, width]."""
    exit: str
    """Name of the last submodule whose output has a token dimension, [B, tokens, ...]."""
    attention: Mapping[str, str]
    """Last part of an attention's name -> place of the text relative to the tokens: "none", "before" or "behind"."""
    rope: str | None = None
    """Name of the submodule that returns rotary tables with a row per token."""
    rope_dim: int = 0
    rope_covers_text: bool = False
    """True if rows of the text precede those of the tokens in the rotary tables."""
    tokens_are_output_of_entry: bool = False
    """True if the first tokens are the output of ``entry`` instead."""


class Family(Protocol):
    """Interface of a file in ``rcm_core/models`` (module-level names)."""

    blocks: tuple[str, ...]
    """Class names of the submodules that are sharded and checkpointed as units."""

    time_layer: str | None
    """Name of the last linear layer of the time embedding; the embeddings of a student's further inputs (guidance
    scale, second time) are added to its output. None: the family has no such embedding."""

    last_layer: str
    """Name of the linear layer from the blocks' tokens to the output."""

    time_features: str
    """Name of the submodule that turns the network's time into features; its input is always float32."""

    time_embedder: str
    """Name of the submodule that embeds these features; it always runs in float32 too."""

    tokens: Tokens | None
    """Positions of the tokens. None: states of this family cannot be split over ranks."""

    network_class: str
    """Class name of the network in ``transformer/config.json``."""

    def check_folder(self, folder: Path) -> None:
        """Raise InputError unless ``folder`` is a complete pipeline of this family; reads no weights."""
        ...

    def load_network(self, folder: Path) -> nn.Module:
        """Return the network of the diffusers pipeline in ``folder``, float32; ValueError unless it is complete."""
        ...

    def empty_network(self, folder: Path) -> nn.Module:
        """Return the same network without weights: parameters on the meta device, real buffers."""
        ...

    def parameterisation(self, folder: Path) -> Parameterisation: ...

    def call(self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor: ...

    def load_codec(self, folder: Path) -> Codec: ...

    def example(self, config: Mapping[str, Any], size: int, rng: torch.Generator) -> tuple[Tensor, Condition]:
        """Return random states, of the smallest shape, and conditions that fit the network of ``config``."""
        ...


class Benchmark(Protocol):
    """Interface of a file in ``rcm_core/benchmarks`` (module-level names); every member is required."""

    judge: str
    """Judge: "classifier", "scenes", "motion", or "open" for the network that the params name."""
    classes: int
    """Number of labels."""
    categories: tuple[str, ...]
    """Categories of prompts whose accuracies are reported separately; empty if there is only one."""
    emphasis: tuple[int, ...]
    """Relative sampling frequency of each label in the training of the built-in teacher."""
    draw: Callable[[str, str, torch.Generator], Tensor] | None
    """``(prompt, split, rng)``: draws an image in [-1, 1], ``[C, T, H, W]``. None: only ``images`` exist."""
    meanings: Callable[[str], dict[int, tuple[int, ...]]] | None
    """Returns the meanings of a prompt's words by position. None: the text encoder learns no meanings."""

    def label(self, prompt: str) -> int:
        """Return the label of ``prompt``; InputError if it cannot be parsed."""
        ...

    def images(self, split: str) -> tuple[Tensor, Tensor]:
        """Return real images in [-1, 1], ``[N, C, T, H, W]``, and labels ``[N]``; InputError if there are none."""
        ...

    def compose_split(self, split: str) -> tuple[Tensor, list[Any]]:
        """Return the same images, and the content of each in the form of its parsed prompt."""
        ...


class Examples(NamedTuple):
    """Real data and their conditions."""

    x0: Tensor
    condition: Condition


class TeacherTrajectory(NamedTuple):
    """Recorded teacher trajectories: ``x`` and guided ``v`` [B, K, ...] at descending angles ``t`` [B, K]."""

    x: Tensor
    t: Tensor
    v: Tensor


class Batch(NamedTuple):
    """A training batch: a pure function of (seed, step, rank)."""

    condition: Condition
    negative: Condition
    x0: Tensor
    """Teacher samples for ``condition``."""
    real: Examples | None = None
    route: TeacherTrajectory | None = None
    """Teacher trajectories that end at ``x0``."""


class Update(NamedTuple):
    """One backward pass: the roles whose parameters it updates, the scalar loss, detached scalars for the log."""

    roles: tuple[str, ...]
    loss: Tensor
    scalars: dict[str, Tensor]


class TargetUpdate(NamedTuple):
    """Target-network update after every update of the role ``after``: target <- (1 - rate) target + rate source."""

    target: str
    source: str
    rate: float
    after: str


class MethodRequirements(NamedTuple):
    """A method's requirements on the trainer, the source and the family, checked before any work starts."""

    roles: frozenset[str]
    """Trained roles: "student", "fake" (both begin as the teacher), "heads" (a discriminator)."""
    needs: frozenset[str]
    """Required parts of a batch: "condition", "x0", "routes", "real"."""
    student_modules: frozenset[str] = frozenset()
    """Modules of the student alone: "guidance" and "end" embed inputs, "log_variance" weighs losses adaptively."""
    guidance: float | None = None
    """Guidance scale that is folded into a candidate's weights; only with the module "guidance"."""
    follows: tuple[TargetUpdate, ...] = ()
    """Target-network updates. A target network that is not trained ("target") begins as the teacher too."""
    heads: tuple[int, ...] = ()
    """Indices of the blocks whose features the discriminator's heads see."""
    min_trajectory_points: int = 0
    """Fewest points of a recorded trajectory."""
    points_per_sample: int = 1
    """Number of training points per sample of a batch."""
    min_samples_per_rank: int = 1
    """Fewest samples that a rank must see at once, for a loss that mixes them."""


class Method(Protocol):
    """A file in ``rcm_core/methods`` has ``Config`` (pydantic) and ``build(config, tangent) -> Method``."""

    @property
    def requirements(self) -> MethodRequirements: ...

    def student_update(self, step: int) -> bool:
        """Return whether step ``step`` (from 0) updates the student; the EMA counts these steps."""
        ...

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        """Yield the losses of step ``step``; the caller runs each one's backward pass before it takes the next."""
        ...

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
"""What a network is conditioned on, by name; every tensor has the batch as its first dimension."""

Velocity = Callable[[Tensor, Tensor, Condition], Tensor]
"""``F(x, t, condition)``: how every network is seen above ``models``; ``x`` [B, ...], ``t`` [B]."""


class Parameterisation(Protocol):
    """How one network speaks TrigFlow."""

    def to_network(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Network input and network time for state ``x`` at angle ``t``."""
        ...

    def velocity(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """``F`` from the network's ``output`` at state ``x`` and angle ``t``."""
        ...

    def output(self, x: Tensor, t: Tensor, F: Tensor) -> Tensor:
        """The network's output whose velocity is ``F``."""
        ...


class Codec(Protocol):
    """Text to condition, latents to pixels; never loaded in training. Each network is loaded when it is first used."""

    length: int
    """Tokens per prompt; longer prompts are cut, shorter ones padded."""

    def to(self, device: torch.device) -> Codec:
        """Itself, with its networks on ``device`` from now on; what they give is on the CPU."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Condition:
        """Conditions of ``texts``, one by one: negative prompts, and prompts unless ``encode_prompts`` differs."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Condition:
        """Conditions of ``prompts``, with what the family's pipeline puts before prompts alone: SANA's instruction."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents of pixels in [-1, 1], ``[B, C, T, H, W]``: what the network is trained on."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels in [0, 1], ``[B, C, T, H, W]``."""
        ...


class Network(Protocol):
    """How a method sees a network: its velocity, and what its blocks hold on the way (for discriminators)."""

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor: ...

    def features(self, x: Tensor, t: Tensor, condition: Condition, blocks: Sequence[int]) -> list[Tensor]:
        """Tokens ``[B, tokens, width]`` that leave the blocks of these indices."""
        ...

    def log_variance(self, t: Tensor) -> Tensor:
        """Log-variance ``[B]`` of the adaptive weighting, of a student that has the head."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


@dataclass(frozen=True)
class Networks:
    """The networks that a method calls; None where a training has none (:func:`require`).

    Roles are the names of the networks that are trained or follow one. They are a file format: ``train.lr`` and
    checkpoints are keyed by them, random numbers are addressed by them, and curves are named after them.
    """

    student: Network
    teacher: Network | None = None
    """The frozen network; gradients reach its inputs."""
    guided_teacher: Velocity | None = None
    """The teacher's guided velocity, without gradient; ``condition["guidance"]`` [B] sets a scale per sample."""
    unconditional_teacher: Velocity | None = None
    """The teacher's velocity for the negative prompt, without gradient."""
    fake_score: Network | None = None
    """The score of the student's samples (role "fake")."""
    target: Network | None = None
    """The student's target network (role "target")."""
    discriminator: nn.Module | None = None
    """Heads on a network's features (role "heads")."""

    @classmethod
    def by_role(cls, trained: Mapping[str, Any], **teachers: Any) -> Networks:
        """Return the networks of a training that trains, or lets follow, ``trained`` by role."""
        return cls(**{FIELDS[role]: network for role, network in trained.items()}, **teachers)


FIELDS = {"student": "student", "fake": "fake_score", "target": "target", "heads": "discriminator"}
"""Role -> field of :class:`Networks`."""


def require(network: Present | None) -> Present:
    """Return a network that the method's requirements promise; AssertionError if there is none."""
    assert network is not None
    return network


class Tokens(NamedTuple):
    """Where a network has the tokens of a state, so that they can be split over ranks."""

    entry: str
    """The submodule whose ``hidden_states`` are the first tokens [B, tokens, width]."""
    exit: str
    """The one whose output [B, tokens, ...] is the last that is by tokens."""
    attention: Mapping[str, str]
    """Last part of an attention's name -> where its sequence has text: "none", "before" the tokens or "behind" them."""
    rope: str | None = None
    """A submodule that returns tables with a row per token."""
    rope_dim: int = 0
    rope_covers_text: bool = False
    """Rows of the text stand before the tokens' in these tables."""
    tokens_are_output_of_entry: bool = False
    """The first tokens are the output of ``entry``."""


class Family(Protocol):
    """What a file in ``rcm_core/models`` provides (as module-level names)."""

    blocks: tuple[str, ...]
    """Class names of the submodules that are sharded and checkpointed as units."""

    time_layer: str | None
    """The last linear layer of the time embedding: what a student takes besides the angle (the guidance scale, a
    second time) is added to its output. None: the family has no such embedding."""

    last_layer: str
    """The linear layer from the blocks' tokens to the output."""

    time_features: str
    """The submodule that turns the network's time into features; it must see it in float32 whatever the rest is in."""

    time_embedder: str
    """The one that embeds these features; it stays in float32 too."""

    tokens: Tokens | None
    """None: states of this family cannot be split over ranks."""

    network_class: str
    """Class name of the network, as ``transformer/config.json`` has it."""

    def check_folder(self, folder: Path) -> None:
        """InputError unless ``folder`` is a whole pipeline of this family; reads no weights."""
        ...

    def load_network(self, folder: Path) -> nn.Module:
        """The network of the diffusers pipeline in ``folder``, float32, total or a ValueError."""
        ...

    def empty_network(self, folder: Path) -> nn.Module:
        """The same without weights: parameters on the meta device, buffers as they are."""
        ...

    def parameterisation(self, folder: Path) -> Parameterisation: ...

    def call(self, network: nn.Module, x: Tensor, time: Tensor, condition: Condition) -> Tensor: ...

    def load_codec(self, folder: Path) -> Codec: ...

    def example(self, config: Mapping[str, Any], size: int, rng: torch.Generator) -> tuple[Tensor, Condition]:
        """Random states of the smallest shape and conditions that fit the network of ``config``."""
        ...


class Benchmark(Protocol):
    """What a file in ``rcm_core/benchmarks`` provides (as module-level names), all of it."""

    judge: str
    """"classifier", "scenes" or "motion"; "open": the network that the params name."""
    classes: int
    """Number of labels."""
    categories: tuple[str, ...]
    """Kinds of prompts whose accuracies are reported one by one; none if all prompts are of one kind."""
    emphasis: tuple[int, ...]
    """How often each label is drawn in training the built-in teacher, relative to the others."""
    draw: Callable[[str, str, torch.Generator], Tensor] | None
    """``(prompt, split, rng)``: an image of the prompt in [-1, 1], ``[C, T, H, W]``. None: images are all there are."""
    meanings: Callable[[str], dict[int, tuple[int, ...]]] | None
    """What words of a prompt mean, by their position. None: the text encoder learns no meanings."""

    def label(self, prompt: str) -> int:
        """The label that ``prompt`` asks for; InputError if it cannot be read."""
        ...

    def images(self, split: str) -> tuple[Tensor, Tensor]:
        """Real images in [-1, 1], ``[N, C, T, H, W]``, and labels ``[N]``; InputError if there are none."""
        ...

    def compose_split(self, split: str) -> tuple[Tensor, list[Any]]:
        """The same images, and what each of them shows as its prompt's reader would say it."""
        ...


class Examples(NamedTuple):
    """Real data with its own condition."""

    x0: Tensor
    condition: Condition


class TeacherTrajectory(NamedTuple):
    """The teacher's own routes: ``x`` and guided ``v`` [B, K, ...] at descending angles ``t`` [B, K]."""

    x: Tensor
    t: Tensor
    v: Tensor


class Batch(NamedTuple):
    """A pure function of (seed, step, rank)."""

    condition: Condition
    negative: Condition
    x0: Tensor
    """What the teacher made for ``condition``."""
    real: Examples | None = None
    route: TeacherTrajectory | None = None
    """How it made ``x0``."""


class Update(NamedTuple):
    """One backward pass: whose parameters it moves, the scalar loss, detached scalars for the log."""

    roles: tuple[str, ...]
    loss: Tensor
    scalars: dict[str, Tensor]


class TargetUpdate(NamedTuple):
    """After every update of the role ``after``: target <- (1 - rate) target + rate source."""

    target: str
    source: str
    rate: float
    after: str


class MethodRequirements(NamedTuple):
    """What a method asks of the trainer, the source and the family, before any work starts."""

    roles: frozenset[str]
    """What it trains: "student", "fake" (both begin as the teacher), "heads" (a discriminator)."""
    needs: frozenset[str]
    """Of the source: "condition", "x0", "routes", "real"."""
    student_modules: frozenset[str] = frozenset()
    """Modules of the student alone: "guidance" and "end" embed inputs, "log_variance" weighs losses adaptively."""
    guidance: float | None = None
    """The guidance scale that is folded into a candidate's weights; only with the module "guidance"."""
    follows: tuple[TargetUpdate, ...] = ()
    """A follower that no update moves ("target") begins as the teacher too."""
    heads: tuple[int, ...] = ()
    """Blocks whose features the discriminator's heads see."""
    min_trajectory_points: int = 0
    """Fewest points of a recorded route."""
    points_per_sample: int = 1
    """Training points that one sample of a batch becomes."""
    min_samples_per_rank: int = 1
    """Samples that a rank must see at once, for a loss that mixes them."""


class Method(Protocol):
    """A file in ``rcm_core/methods`` has ``Config`` (pydantic) and ``build(config, tangent) -> Method``."""

    @property
    def requirements(self) -> MethodRequirements: ...

    def student_update(self, step: int) -> bool:
        """Whether step ``step`` (from 0) moves the student; EMA counts these."""
        ...

    def updates(self, networks: Networks, batch: Batch, step: int, rng: torch.Generator) -> Iterator[Update]:
        """Losses of step ``step``, each to be followed by its backward pass before the next is asked for."""
        ...

"""Shared networks, batch and settings for the tests of DMD2."""

import torch
from gaussians import Perceptron, six_modes
from spies import Spy, gradients, preset

from rcm_core.networks.discriminator import Heads
from rcm_core.protocols import Batch, Examples, Networks
from rcm_core.rng import generator

MIXTURE = six_modes(torch.float64)
SIZE = 32
BATCH = Batch(
    {}, {}, MIXTURE.sample(SIZE, generator("data")), Examples(MIXTURE.sample(SIZE, generator("real")), {})
)
OFF = {"student_every": 3, "simulation_steps": 4, "fixed_times": None, "gan_weight": 0.0, "gan_blocks": []}
ON = {**OFF, "gan_weight": 0.3, "gan_critic_weight": 0.2, "gan_blocks": [0, 2]}


def networks(heads: bool = True) -> dict:
    nets = {
        "student": Spy(Perceptron(seed=1).double()),
        "fake_score": Spy(Perceptron(seed=2).double()),
        "guided_teacher": Spy(MIXTURE.velocity),
    }
    if heads:
        torch.manual_seed(5)
        nets["discriminator"] = (
            Heads(96, 2).double().eval()
        )  # no power iteration: every call sees the same heads
    return nets


def updates(step: int, nets: dict, **changes):
    yield from preset("dmd2", **changes).updates(Networks(**nets), BATCH, step, generator(0, step))


def all_gradients(loss, nets) -> dict[str, torch.Tensor]:
    return {name: gradients(loss, net) for name, net in nets.items() if list(net.parameters())}

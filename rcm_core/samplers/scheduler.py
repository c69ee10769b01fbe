"""The few-step sampler as a diffusers scheduler, so that a student is an ordinary diffusers pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from rcm_core.diffusion.trigflow import flow_time_from_angle
from rcm_core.errors import InputError
from rcm_core.samplers.few_step import Sampler

Generators = torch.Generator | list[torch.Generator]


@dataclass
class FewStepSchedulerOutput(BaseOutput):  # type: ignore[misc]
    prev_sample: Tensor


class FewStepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """``sample_student`` (E28) for a pipeline whose network is a rectified flow (it predicts eps - x0 at flow
    time tau).

    The pipeline's latents are rectified-flow states c x (E7); its unit noise is the first state, at any angle.
    ``times`` has a list of angles for each number of steps. A configuration without it is an error, because no sampler
    fits every student.

    Renoising draws from the generators of ``step``, or else from those of ``set_generator``. Most pipelines pass none
    to ``step``. Then the bits of a sample's initial latents seed its noise: fixing the latents (by the pipeline's
    ``generator=``, one or a list, by ``latents=`` or by ``torch.manual_seed``) fixes the sample, in any batch and on
    any device.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[misc,untyped-decorator]
    def __init__(
        self,
        kind: str = "renoise",
        times: Sequence[Sequence[float]] = (),
        num_train_timesteps: int = 1000,  # noqa: ARG002 (read from the config)
    ) -> None:
        self._sampler = Sampler.of(kind, times)
        self.generator: Generators | None = None
        self.set_timesteps(self._sampler.steps[-1])

    def set_generator(self, generator: Generators | None) -> None:
        """Set the generator of renoising if the pipeline passes none to ``step``; None: the initial latents seed it."""
        self.generator = generator

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,  # noqa: ARG002 - a shift that the student's own times do not need
    ) -> None:
        """Set the student's times for ``num_inference_steps``; InputError if it has none for that number.

        If a pipeline passes its own ``sigmas`` instead, only their number matters.
        """
        if num_inference_steps is None:
            if sigmas is None:
                raise InputError("set_timesteps got neither num_inference_steps nor sigmas; pass one of them")
            num_inference_steps = len(sigmas)
        angles = self._sampler.angles(num_inference_steps)
        tau = flow_time_from_angle(torch.tensor(angles, dtype=torch.float64))
        self.num_inference_steps = num_inference_steps
        self.timesteps = (self.config.num_train_timesteps * tau).float().to(device)
        self.sigmas = torch.cat([tau, tau.new_zeros(1)]).float()
        self._tau = [*tau.tolist(), 0.0]
        self.step_index: int | None = None
        self.begin_index: int | None = None
        self._seeded: list[torch.Generator] = []

    def set_begin_index(self, begin_index: int = 0) -> None:
        self.begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators | None = None,
        return_dict: bool = True,
    ) -> FewStepSchedulerOutput | tuple[Tensor]:
        """Take ``sample`` [B, ...] to the next time by renoising or an Euler step; the last returns the clean sample.

        ``generator``: one for the batch or a list with one per sample; None: see the class.
        """
        if self.step_index is None:
            self.step_index = self._index(timestep) if self.begin_index is None else self.begin_index
            self._seeded = [_generator_of(state) for state in sample]
        tau, after = self._tau[self.step_index], self._tau[self.step_index + 1]
        state, velocity = sample.float(), model_output.float()
        if self._sampler.kind == "euler" or after == 0:
            result = state + (after - tau) * velocity
        else:
            source = next((g for g in (generator, self.generator) if g is not None), self._seeded)
            noise = randn_tensor(state.shape, generator=source, device=state.device, dtype=state.dtype)
            result = (1 - after) * (state - tau * velocity) + after * noise
        self.step_index += 1
        result = result.to(sample.dtype)
        return FewStepSchedulerOutput(prev_sample=result) if return_dict else (result,)

    def _index(self, timestep: float | Tensor) -> int:
        distance = (self.timesteps.cpu() - float(timestep)).abs()
        return int(distance.argmin())

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _generator_of(state: Tensor) -> torch.Generator:
    """Return a CPU generator, seeded by the bits of ``state``."""
    content = state.detach().float().cpu().contiguous().numpy().tobytes()
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little", signed=True)
    return torch.Generator().manual_seed(seed)

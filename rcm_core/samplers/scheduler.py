"""The few-step sampler as a diffusers scheduler, so that a student is an ordinary diffusers pipeline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from rcm_core.errors import InputError
from rcm_core.trigflow import NOISE_ANGLE, flow_time_from_angle

DEFAULT_ANGLES = (NOISE_ANGLE, 1.3, 1.0, 0.6)
"""arXiv 2510.08431 (1.3, 1.0, 0.6), from pure noise."""


@dataclass
class FewStepSchedulerOutput(BaseOutput):  # type: ignore[misc]
    prev_sample: Tensor


class FewStepScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """``sample_student`` (E28) for a pipeline whose network is a rectified flow (it predicts eps - x0 at flow
    time tau).

    The pipeline's latents are rectified-flow states c x (E7). At the first angle, pi/2, c = 1: the pipeline's
    unit noise is the state, which is why another first angle is refused. ``n`` inference steps use the first
    ``n`` angles.
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[misc,untyped-decorator]
    def __init__(
        self,
        angles: Sequence[float] = DEFAULT_ANGLES,
        num_train_timesteps: int = 1000,  # noqa: ARG002 (read from the config)
    ) -> None:
        _check(angles)
        self.generator: torch.Generator | None = None
        self.set_timesteps(len(angles))

    def set_generator(self, generator: torch.Generator | None) -> None:
        """Source of the renoising for pipelines that pass none to ``step``; None: torch's global stream."""
        self.generator = generator

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """InputError if more steps are asked for than there are angles."""
        angles = self.config.angles
        if not 1 <= num_inference_steps <= len(angles):
            raise InputError(
                f"{num_inference_steps} steps asked for, but this student has angles for 1 to {len(angles)}; "
                "choose num_inference_steps in that range"
            )
        tau = flow_time_from_angle(torch.tensor(angles[:num_inference_steps], dtype=torch.float64))
        self.num_inference_steps = num_inference_steps
        self.timesteps = (self.config.num_train_timesteps * tau).float().to(device)
        self.sigmas = torch.cat([tau, tau.new_zeros(1)]).float()
        self._tau = [*tau.tolist(), 0.0]
        self.step_index: int | None = None
        self.begin_index: int | None = None

    def set_begin_index(self, begin_index: int = 0) -> None:
        self.begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:  # noqa: ARG002
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> FewStepSchedulerOutput | tuple[Tensor]:
        """Denoises ``sample`` and renoises it to the next angle; the last step returns the clean sample."""
        if self.step_index is None:
            self.step_index = self._index(timestep) if self.begin_index is None else self.begin_index
        tau, after = self._tau[self.step_index], self._tau[self.step_index + 1]
        state = sample.float()
        result = state - tau * model_output.float()
        if after > 0:
            source = self.generator if generator is None else generator
            noise = randn_tensor(state.shape, generator=source, device=state.device, dtype=state.dtype)
            result = (1 - after) * result + after * noise
        self.step_index += 1
        result = result.to(sample.dtype)
        return FewStepSchedulerOutput(prev_sample=result) if return_dict else (result,)

    def _index(self, timestep: float | Tensor) -> int:
        distance = (self.timesteps.cpu() - float(timestep)).abs()
        return int(distance.argmin())

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _check(angles: Sequence[float]) -> None:
    if not angles or not math.isclose(angles[0], NOISE_ANGLE, abs_tol=1e-9):
        raise InputError(
            f"angles {list(angles)} must begin with pi/2: a pipeline starts from unit noise, "
            "which is the state at that angle alone"
        )
    if any(later >= earlier for earlier, later in pairwise(angles)) or angles[-1] <= 0:
        raise InputError(f"angles {list(angles)} must descend and stay above 0")

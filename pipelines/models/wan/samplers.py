"""Wan's samplers: UniPC and Euler, with the noise levels of a request."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from longtake.configs.request import ResolvedRequest
from longtake.pipelines.models.wan.configs import EulerConfig, UniPCConfig
from longtake.pipelines.models.wan.options import WanOptions
from longtake.pipelines.runtime.stepper import SchedulerStepper, Stepper, UniPCStepper


def new_stepper(
    config: UniPCConfig | EulerConfig, request: ResolvedRequest, device: torch.device
) -> Stepper:
    """The requested sampler, set to the request's shift and noise levels.

    Args:
        config: Configuration of the checkpoint's scheduler. Its settings hold for its own sampler.
        request: The request.
        device: Device of the latents.
    """
    if WanOptions.of(request).sampler == "unipc":
        own = config if isinstance(config, UniPCConfig) else _unipc(config)
        values = {**own.model_dump(), "flow_shift": request.flow_shift}
        unipc = UniPCMultistepScheduler(**values)
        _set_timesteps(unipc, request, device)
        return UniPCStepper(unipc)
    euler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=config.num_train_timesteps, shift=request.flow_shift
    )
    _set_timesteps(euler, request, device)
    return SchedulerStepper(euler)


def _unipc(config: EulerConfig) -> UniPCConfig:
    """UniPC as in the released models, for a checkpoint with Euler."""
    return UniPCConfig(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        num_train_timesteps=config.num_train_timesteps,
    )


def _set_timesteps(scheduler: Any, request: ResolvedRequest, device: torch.device) -> None:
    """Set the noise levels: the request's, or ``num_inference_steps`` of the sampler's spacing."""
    count = request.num_inference_steps
    if request.sigmas is not None:
        scheduler.set_timesteps(sigmas=np.array(request.sigmas), device=device)
    elif WanOptions.of(request).sigma_spacing == "linear":
        sigmas = np.linspace(1.0, 0.0, count + 1)[:-1]
        scheduler.set_timesteps(sigmas=sigmas, device=device)
    else:
        scheduler.set_timesteps(count, device=device)

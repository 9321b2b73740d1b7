"""Field types and configurations that model families share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

Count = Annotated[int, Field(strict=True, ge=1, le=2**20)]
NumLayers = Annotated[int, Field(strict=True, ge=0, le=1000)]
Positive = Annotated[float, Field(strict=True, gt=0, le=1e9, allow_inf_nan=False)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=4096)]
Flag = Annotated[bool, Field(strict=True)]


class Component(BaseModel):
    """Fields common to every config.json.

    Fields whose only valid value is null or false are unsupported features.
    """

    quantization_config: None = None


class SchedulerConfig(BaseModel):
    """Configuration of FlowMatchEulerDiscreteScheduler."""

    num_train_timesteps: Count = 1000
    shift: Annotated[float, Field(strict=True, ge=0.01, le=1000, allow_inf_nan=False)] = 1.0
    shift_terminal: None = None
    stochastic_sampling: Literal[False] | None = False
    use_dynamic_shifting: Literal[False] | None = False
    invert_sigmas: Literal[False] | None = False
    use_beta_sigmas: Literal[False] | None = False

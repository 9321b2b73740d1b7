"""Validated fields of Wan's transformer and scheduler configurations, with diffusers' defaults."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field, model_validator

from longtake.pipelines.loading.component_config import (
    Component,
    Count,
    Flag,
    NumLayers,
    Positive,
    SchedulerConfig,
)


class TransformerConfig(Component):
    """Configuration of WanTransformer3DModel.

    Attributes:
        image_dim: Values per token of the image encoder; None for a model without image keys.
        added_kv_proj_dim: Width of the image keys in cross attention: the model width.
        pos_embed_seq_len: Image tokens of two pictures, for a model of first and last frames.
    """

    patch_size: tuple[Count, Count, Count] = (1, 2, 2)
    num_attention_heads: Count = 40
    attention_head_dim: Annotated[Count, Field(ge=6, multiple_of=2)] = 128
    in_channels: Count = 16
    out_channels: Count | None = 16
    text_dim: Count = 4096
    freq_dim: Annotated[Count, Field(multiple_of=2)] = 256
    ffn_dim: Count = 13824
    num_layers: NumLayers = 40
    cross_attn_norm: Flag = True
    qk_norm: Literal["rms_norm_across_heads"] = "rms_norm_across_heads"
    eps: Positive = 1e-6
    image_dim: Count | None = None
    added_kv_proj_dim: Count | None = None
    rope_max_seq_len: Count = 1024
    pos_embed_seq_len: Annotated[Count, Field(multiple_of=2)] | None = None

    @model_validator(mode="after")
    def _check_patch(self) -> TransformerConfig:
        if self.patch_size[1] != self.patch_size[2]:
            raise ValueError("patch_size must be as high as it is wide")
        return self

    @model_validator(mode="after")
    def _check_image_keys(self) -> TransformerConfig:
        added = None if self.image_dim is None else self.width
        if self.added_kv_proj_dim != added:
            raise ValueError(
                f"added_kv_proj_dim must be {added or 'null'} with image_dim={self.image_dim} and "
                f"a model width of {self.width}"
            )
        if self.pos_embed_seq_len is not None and self.image_dim is None:
            raise ValueError("pos_embed_seq_len needs image_dim: it positions image tokens")
        return self

    @property
    def width(self) -> int:
        """Model width: values per token in the blocks."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def latent_channels(self) -> int:
        """Channels of the latents: those of the velocity."""
        return self.out_channels or self.in_channels

    @property
    def values_in(self) -> int:
        """Values per token at the input of the patch embedding."""
        return self.in_channels * math.prod(self.patch_size)

    @property
    def token_values(self) -> int:
        """Values per token of the latents in the denoising loop."""
        return self.latent_channels * math.prod(self.patch_size)


Shift = Annotated[float, Field(strict=True, ge=0.01, le=1000, allow_inf_nan=False)]
Disabled = Literal[False] | None


class UniPCConfig(BaseModel):
    """Configuration of UniPCMultistepScheduler on the sigmas of flow matching.

    Fields whose only valid value is null or false are unsupported features.
    """

    prediction_type: Literal["flow_prediction"]
    use_flow_sigmas: Literal[True]
    num_train_timesteps: Count = 1000
    flow_shift: Shift = 1.0
    solver_order: Literal[1, 2, 3] = 2
    solver_type: Literal["bh2"] = "bh2"  # bh1 divides by the last noise level, which is 0
    lower_order_final: Literal[True] = True  # else the last step solves a singular system
    disable_corrector: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=0)], ...], Field(max_length=1000)
    ] = ()
    predict_x0: Literal[True] = True
    final_sigmas_type: Literal["zero"] = "zero"
    thresholding: Disabled = False
    solver_p: None = None
    use_karras_sigmas: Disabled = False
    use_exponential_sigmas: Disabled = False
    use_beta_sigmas: Disabled = False
    use_dynamic_shifting: Disabled = False
    shift_terminal: None = None
    sigma_min: None = None
    sigma_max: None = None

    @property
    def shift(self) -> float:
        """Shift of the noise schedule."""
        return self.flow_shift


class EulerConfig(SchedulerConfig):
    """Configuration of FlowMatchEulerDiscreteScheduler."""

    use_karras_sigmas: Disabled = False
    use_exponential_sigmas: Disabled = False


SCHEDULERS: dict[str, tuple[Literal["unipc", "euler"], type[UniPCConfig] | type[EulerConfig]]] = {
    "UniPCMultistepScheduler": ("unipc", UniPCConfig),
    "FlowMatchEulerDiscreteScheduler": ("euler", EulerConfig),
}
"""Sampler and configuration of each supported class of diffusers."""

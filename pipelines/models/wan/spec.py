"""What a Wan model takes, and what a request for it resolves to; without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from longtake.configs.request import Rendering, ResolvedRequest
from longtake.errors import RequestError
from longtake.pipelines.models.wan.configs import EulerConfig, UniPCConfig
from longtake.pipelines.models.wan.costs import TEXT_TOKENS, WanCosts
from longtake.pipelines.models.wan.defaults import WanDefaults
from longtake.pipelines.models.wan.options import Sampler, WanExpertsOptions, WanOptions
from longtake.pipelines.spec import ModelSpec

EXPERTS = ("transformer", "transformer_2")
"""Components of a checkpoint: the expert of the early steps, and that of the later ones."""


@dataclass(frozen=True, kw_only=True)
class WanSpec(ModelSpec):
    """Specification of a Wan model.

    Attributes:
        scheduler: Configuration of the checkpoint's scheduler.
        sampler: Sampler of the checkpoint's scheduler.
        boundary: Lowest timestep of the high-noise expert; None for one transformer.
        expand_timesteps: Whether a given first frame stands in the latents themselves, with a
            timestep of its own, rather than in channels beside them.
    """

    defaults: WanDefaults
    costs: WanCosts
    options: type[WanOptions] = WanOptions
    scale_field: str | None = "guidance_scale"
    tiles_time: bool = False
    scheduler: UniPCConfig | EulerConfig
    sampler: Sampler
    boundary: float | None = None
    expand_timesteps: bool = False

    @property
    def transformers(self) -> tuple[str, ...]:
        """Components of the transformers: the high-noise expert first."""
        return EXPERTS[:1] if self.boundary is None else EXPERTS

    @property
    def has_image_keys(self) -> bool:
        """Whether cross attention has keys of the pictures, from an image encoder."""
        return self.costs.image_encoder is not None

    def resolve_fields(self, request: Rendering) -> dict[str, Any]:
        """Guidance scales, the negative prompt, the sampler and the shift.

        Raises:
            RequestError: The model has image keys, and the text another length than its own; or the
                low-noise expert is guided, and the other one not.
        """
        self._check_text_length(request)
        fields = super().resolve_fields(request)
        fields["sampler"] = fields["sampler"] or self.sampler
        fields["sigma_spacing"] = fields["sigma_spacing"] or "scheduler"
        if self.boundary is not None:
            scale = fields["guidance_scale"]
            fields["guidance_scale_2"] = self._low_noise_scale(request, scale)
        return fields

    @property
    def guidance_options(self) -> tuple[str, ...]:
        """The scales of both experts."""
        return ("guidance_scale", "guidance_scale_2")

    def costs_of(self, request: ResolvedRequest) -> WanCosts:
        """Costs with the text keys of a request, and timesteps per token if it gives a picture."""
        return replace(
            self.costs,
            text_keys=request.max_sequence_length,
            per_token_timesteps=self.expand_timesteps and request.gives("image"),
        )

    def _check_text_length(self, request: Rendering) -> None:
        length = request.max_sequence_length
        if self.has_image_keys and length not in (None, TEXT_TOKENS):
            raise RequestError(
                f"max_sequence_length={length} with a model that has image keys: they are told "
                f"from text by its length of {TEXT_TOKENS}; leave it out"
            )

    def _low_noise_scale(self, request: Rendering, scale: float) -> float:
        """The scale of the low-noise expert; as in diffusers, that of the other if only that one is
        given."""
        given = WanExpertsOptions.of(request).guidance_scale_2
        if given is None:
            default = self.defaults.guidance_scale_2
            return scale if request.guidance_scale is not None or default is None else default
        if given > 1 and scale <= 1:
            raise RequestError(
                f"guidance_scale_2={given:g} with guidance_scale={scale:g}, which turns guidance "
                "off in all steps: give a guidance_scale above 1, or leave guidance_scale_2 out"
            )
        return given

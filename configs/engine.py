"""What an engine is made of: a model, the ranks that render with it, and their deadlines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from longtake.configs.base import Dtype, NamedPath, StrictModel
from longtake.configs.parallel import ParallelConfig

DeviceId = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=10_000_000, allow_inf_nan=False)]


class EngineConfig(StrictModel):
    """Everything that is fixed while an engine runs."""

    model: str = Field(
        default="demo",
        min_length=1,
        description="Folder or hub id of a model in diffusers layout; demo is the small one that "
        "comes with the package",
    )
    revision: str | None = Field(
        default=None, min_length=1, description="Branch, tag or commit of a hub id; the newest"
    )
    devices: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=1, description="Ranks: GPUs, or processes where there is none"
    )
    device_ids: Annotated[tuple[DeviceId, ...], Field(min_length=1)] | None = Field(
        default=None, description="The GPUs by number, one a rank; the first ones"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Kind of device; a GPU where there is one"
    )
    dtype: Literal["auto", Dtype] = Field(
        default="auto", description="Of weights and activations; bfloat16 on a GPU, float32 on CPU"
    )
    vae_dtype: Literal["auto", Dtype] = Field(
        default="auto", description="Of the decoder; the model's own, else dtype"
    )
    attention_kernel: str = Field(
        default="auto", description="Local attention kernel; the fastest that can serve"
    )
    autoencoder_only: bool = Field(
        default=False, description="Load what decodes latents, and nothing else"
    )
    image_folder: NamedPath | None = Field(
        default=None, description="The only folder that pictures are read from; any"
    )
    parallel: ParallelConfig = ParallelConfig()

    @model_validator(mode="after")
    def _a_device_a_rank(self) -> EngineConfig:
        ids = self.device_ids
        if ids is not None and (len(ids) != self.devices or len(set(ids)) != len(ids)):
            raise ValueError(
                f"device_ids={' '.join(map(str, ids))} with devices={self.devices}: name so many, "
                "each once"
            )
        return self

    @property
    def devices_by_rank(self) -> tuple[int, ...]:
        """The number of each rank's GPU, or of what stands for one on a CPU."""
        return self.device_ids or tuple(range(self.devices))

    rank_loss_timeout_s: Seconds = Field(
        default=10, description="Seconds in which all ranks have ended once one has died"
    )
    stop_timeout_s: Seconds = Field(
        default=30,
        description="Seconds that a step or a tile may go on once the rendering is to stop; then "
        "the ranks are killed",
    )
    load_timeout_s: Seconds = Field(
        default=1800, description="Seconds that one component of the model may take to load"
    )
    text_timeout_s: Seconds = Field(default=600, description="Seconds for encoding the prompt")
    step_timeout_s: Seconds = Field(
        default=1800,
        description="Seconds for a denoising step; once some were timed, 20 times the slowest, "
        "60 at least",
    )
    decode_timeout_s: Seconds = Field(
        default=1800,
        description="Seconds for decoding one tile, or a video that is not tiled, and for writing "
        "what comes of it",
    )

"""Options of an engine: the model, its ranks, and their deadlines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from longtake.configs.base import Dtype, NamedPath, Seconds, StrictModel
from longtake.configs.fields.weights import (
    TextPlace,
    WeightPlace,
    WeightStorage,
    place_of_shard_weights,
)
from longtake.configs.parallel import ParallelConfig

DeviceId = Annotated[int, Field(ge=0, le=65535)]


PARTS = (
    *("transformer", "transformer_2", "vae"),
    *("text_encoder", "text_encoder_2", "image_encoder"),
)
"""Fields that name a file or folder in place of a component of the model."""


def _part(named: str) -> Any:
    """A field that names a file or folder in place of a component."""
    return Field(
        default=None,
        description=f"File or folder that stands in for the model's {named}, in any known layout",
    )


class EngineConfig(StrictModel):
    """Options that are fixed while an engine runs."""

    model: str = Field(
        default="demo",
        min_length=1,
        description="Folder or Hugging Face Hub id of a model in diffusers format, a publisher's "
        "own folder, or a file of a transformer; demo is a small bundled model",
    )
    revision: str | None = Field(
        default=None,
        min_length=1,
        description="Branch, tag or commit of a model on the Hub, also of the one that a file is "
        "recognized as; the latest by default",
    )
    transformer: NamedPath | None = _part("transformer")
    transformer_2: NamedPath | None = _part("transformer_2, the expert of the later steps")
    vae: NamedPath | None = _part("VAE")
    text_encoder: NamedPath | None = _part("text encoder")
    text_encoder_2: NamedPath | None = _part("second text encoder")
    image_encoder: NamedPath | None = _part("image encoder")
    devices: Annotated[int, Field(ge=1, le=65536)] = Field(
        default=1, description="Number of ranks: GPUs, or processes on a CPU"
    )
    device_ids: Annotated[tuple[DeviceId, ...], Field(min_length=1)] | None = Field(
        default=None, description="GPU indices, one per rank; the first ones by default"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Device type; auto is cuda if a GPU is available"
    )
    dtype: Literal["auto", Dtype] = Field(
        default="auto",
        description="Dtype of weights and activations; auto is bfloat16 on a GPU and float32 on a "
        "CPU",
    )
    vae_dtype: Literal["auto", Dtype] = Field(
        default="auto", description="Dtype of the VAE; auto is the model's default, or else dtype"
    )
    weights: Literal["auto", WeightPlace] = Field(
        default="auto",
        description="Where the transformer's weights live: whole on each device (resident), "
        "brought block by block from host memory (streamed) or from their files (disk), or split "
        "over the ranks; auto is the fastest that fits",
    )
    text_weights: Literal["auto", TextPlace] = Field(
        default="auto", description="The same for the text encoders, which are never split"
    )
    storage_dtype: WeightStorage | None = Field(
        default=None,
        description="Type of fewer bits that the transformer's weights are stored in; it loses "
        "quality, as measured in docs/explanation/exactness.md; gguf keeps those of a GGUF file, "
        "and loses nothing of it; their dtype by default",
    )
    attention_kernel: str = Field(
        default="auto", description="Local attention kernel; auto is the fastest that runs here"
    )
    autoencoder_only: bool = Field(
        default=False, description="Load only the components that decode latents"
    )
    image_folder: NamedPath | None = Field(
        default=None,
        description="Only folder from which pictures are read; any folder by default",
    )
    lora_folder: NamedPath | None = Field(
        default=None,
        description="Only folder from which LoRAs are taken, by their names in it; any file by "
        "default",
    )
    parallel: ParallelConfig = ParallelConfig()

    rank_loss_timeout_s: Seconds = Field(
        default=10, description="Seconds within which all ranks end after one has died"
    )
    stop_timeout_s: Seconds = Field(
        default=30,
        description="Seconds to finish the current step or tile after a stop request, before the "
        "ranks are killed",
    )
    load_timeout_s: Seconds = Field(
        default=1800, description="Seconds to load one component of the model"
    )
    text_timeout_s: Seconds = Field(default=600, description="Seconds to encode the prompt")
    step_timeout_s: Seconds = Field(
        default=1800,
        description="Seconds for one denoising step; after some steps, 20 times the slowest, but "
        "at least 60",
    )
    decode_timeout_s: Seconds = Field(
        default=1800,
        description="Seconds to decode and write one tile, or a video without tiles",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_shard_weights(cls, values: Any) -> Any:
        """Read ``parallel.shard_weights`` of records of 0.1.0, where weights were split or not."""
        parallel = values.get("parallel") if isinstance(values, dict) else None
        if not isinstance(parallel, dict) or "shard_weights" not in parallel:
            return values
        degrees = {name: value for name, value in parallel.items() if name != "shard_weights"}
        weights = place_of_shard_weights(parallel["shard_weights"])
        return {"weights": weights, **values, "parallel": degrees}

    @model_validator(mode="after")
    def _one_device_per_rank(self) -> EngineConfig:
        ids = self.device_ids
        if ids is not None and (len(ids) != self.devices or len(set(ids)) != len(ids)):
            raise ValueError(
                f"device_ids={' '.join(map(str, ids))} with devices={self.devices}: name one "
                "index per rank, each once"
            )
        return self

    @property
    def parts(self) -> dict[str, Path]:
        """Files and folders that stand in for components of the model, by the component: those of
        the components that are loaded."""
        names = ("vae",) if self.autoencoder_only else PARTS
        named = {name: getattr(self, name) for name in names}
        return {name: path for name, path in named.items() if path is not None}

    @property
    def places(self) -> tuple[WeightPlace, TextPlace]:
        """Places of the transformer and of the text encoders.

        Raises:
            ValueError: One is still "auto": the planner resolves it before ranks start.
        """
        if self.weights == "auto" or self.text_weights == "auto":
            raise ValueError(
                f"weights={self.weights} and text_weights={self.text_weights} on a rank: resolve "
                "them with EngineOutline.place_weights first"
            )
        return self.weights, self.text_weights

    @property
    def devices_by_rank(self) -> tuple[int, ...]:
        """Device index of each rank."""
        return self.device_ids or tuple(range(self.devices))

    @property
    def weights_dtype(self) -> str:
        """The dtype of weights and activations and the type that weights are stored in, in words,
        such as "bfloat16, stored as float8"."""
        storage = self.storage_dtype
        return self.dtype if storage is None else f"{self.dtype}, stored as {storage}"

    def compute_dtype(self, device_type: str) -> Dtype:
        """The dtype of weights and activations: the configured one, else the device's default.

        Args:
            device_type: "cuda" or "cpu".
        """
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if device_type == "cuda" else "float32"

    def autoencoder_dtype(self, model_dtype: Dtype | None, device_type: str) -> Dtype:
        """The dtype of the autoencoder: the configured one, else the model's, else
        :meth:`compute_dtype`.

        Args:
            model_dtype: Default of the model for its autoencoder; None if it has none.
            device_type: "cuda" or "cpu".
        """
        if self.vae_dtype != "auto":
            return self.vae_dtype
        return model_dtype or self.compute_dtype(device_type)

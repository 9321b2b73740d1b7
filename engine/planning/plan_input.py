"""What a plan is made for: a model, a request and hardware; the same for all of its layouts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from longtake.configs.base import ELEMENT_BYTES, Dtype
from longtake.configs.engine import EngineConfig
from longtake.configs.fields.weights import WeightStorage
from longtake.configs.hardware import Hardware
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import ResolvedRequest
from longtake.engine.planning.layouts import candidate_layouts
from longtake.errors import RequestError
from longtake.parallel import ParallelDims, TokenShards
from longtake.parallel.heads import HeadShards
from longtake.pipelines.costs import ModelCosts, Work
from longtake.pipelines.quantization.sizes import Storage
from longtake.pipelines.spec import LatentGrid, ModelSpec, shards_of


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanInput:
    """The model, the request and the hardware of one plan.

    Args:
        spec: The model.
        hardware: The hardware profile.
        request: The request to plan.
        dtype: The dtype of weights and activations.
        vae_dtype: The dtype of the autoencoder.
        text_tokens: Tokens of the encoded prompt; a negative prompt has as many.
        decode_ranks: Maximum number of ranks that decode; None for all.
        storage_dtype: What the transformer's blocks are stored as; None for ``dtype``.

    Raises:
        RequestError: The hardware profile has no rate for a dtype, or the transformer is not in the
            files that its storage type needs.
    """

    spec: ModelSpec
    hardware: Hardware
    request: ResolvedRequest
    dtype: Dtype
    vae_dtype: Dtype
    text_tokens: int
    decode_ranks: int | None = None
    storage_dtype: WeightStorage | None = None

    def __post_init__(self) -> None:
        check_storage(self.storage_dtype, self.spec)
        for name in ("dtype", "vae_dtype"):
            if getattr(self, name) not in self.hardware.flops_per_s:
                raise RequestError(
                    f"{name}={getattr(self, name)}: the profile of {self.hardware.description} has "
                    f"no rate for it: use {', '.join(self.hardware.flops_per_s)}"
                )

    @classmethod
    def for_engine(
        cls,
        config: EngineConfig,
        spec: ModelSpec,
        hardware: Hardware,
        request: ResolvedRequest,
        *,
        text_tokens: int | None = None,
        decode_ranks: int | None = None,
    ) -> PlanInput:
        """The input for an engine of this configuration.

        Args:
            text_tokens: Tokens of the encoded prompt; the model's maximum if None.

        Raises:
            RequestError: The hardware profile has no rate for a dtype.
        """
        return cls(
            spec=spec,
            hardware=hardware,
            request=request,
            dtype=config.compute_dtype(hardware.device),
            vae_dtype=config.autoencoder_dtype(spec.defaults.vae_dtype, hardware.device),
            text_tokens=text_tokens or spec.text_tokens(request),
            decode_ranks=decode_ranks,
            storage_dtype=config.storage_dtype,
        )

    @cached_property
    def grid(self) -> LatentGrid:
        """The latent grid of the request."""
        return self.spec.grid(self.request)

    @cached_property
    def costs(self) -> ModelCosts:
        """Cost model of the request."""
        return self.spec.costs_of(self.request)

    @property
    def element_size(self) -> int:
        """Bytes of one element of weights and activations."""
        return ELEMENT_BYTES[self.dtype]

    @property
    def storage(self) -> Storage | None:
        """What the transformer's blocks are stored as, for a cost model."""
        return self.spec.gguf_value_bytes if self.storage_dtype == "gguf" else self.storage_dtype

    @property
    def file_element_size(self) -> float:
        """Mean bytes of a value of the transformer in its files."""
        return self.spec.gguf_value_bytes or self.costs.file_element_size

    def transformer_bytes(self, ranks: int = 1) -> int:
        """Bytes of the weights of all experts, as they are stored, on each of the ranks that they
        are split over."""
        return self.costs.transformer_bytes(self.element_size, ranks, self.storage)

    @cached_property
    def num_passes(self) -> int:
        """Transformer passes of one step."""
        return self.spec.num_passes(self.request)

    @cached_property
    def joint_tokens(self) -> int:
        """Tokens that are split over the ranks beside the video's; 0 if the text is not split."""
        joint = self.spec.joint_tokens(self.request)
        fewer = self.spec.text_tokens(self.request) - self.text_tokens
        return max(0, joint - fewer) if joint else 0

    def layouts(self, requested: ParallelConfig, devices: int) -> list[ParallelDims]:
        """The layouts of the request that have the requested degrees; see
        :func:`.layouts.candidate_layouts`.

        Raises:
            LayoutError: The degrees do not multiply to the devices, or there is no second pass.
        """
        return candidate_layouts(
            requested, devices, num_heads=self.spec.num_heads, num_passes=self.num_passes
        )

    def shards(self, dims: ParallelDims) -> TokenShards:
        """Ownership of the video and joint tokens in a layout."""
        return shards_of(self.grid.num_tokens, self.joint_tokens, dims)[0]

    def head_share(self, dims: ParallelDims) -> float:
        """Query heads of the rank that has most, over an even share of them."""
        heads, degree = self.costs.attention, dims.ulysses_degree
        shards = HeadShards.even(heads.num_heads, heads.num_kv_heads, degree)
        return max(map(len, shards.query)) * degree / heads.num_heads

    def seconds(self, work: Work, dtype: Dtype | None = None) -> float:
        """The time that one device takes for some work.

        A GPU computes while the host launches the next operations; on a CPU both share a core.

        Args:
            work: Operations, bytes and launches.
            dtype: The dtype of the operations; that of the transformer if None.
        """
        hardware = self.hardware
        peak = hardware.flops_per_s[dtype or self.dtype].value
        memory_rate = hardware.memory_bytes_per_s.value * hardware.memory_share.value
        compute_s = (
            work.linear_flops / (peak * hardware.linear_share.value)
            + work.attention_flops / (peak * hardware.attention_share.value)
            + work.convolution_flops / self._convolution_rate(dtype or self.dtype)
            + work.memory_bytes / memory_rate
        )
        launch_s = work.launches * hardware.launch_s.value
        return max(compute_s, launch_s) if hardware.device == "cuda" else compute_s + launch_s

    def _convolution_rate(self, dtype: Dtype) -> float:
        """Achieved operations per second of convolutions.

        On a GPU torch computes those in float32 with TF32, at half of the rate of half precision.
        """
        hardware = self.hardware
        peak = hardware.flops_per_s[dtype].value
        half = hardware.flops_per_s.get("bfloat16")
        if hardware.device == "cuda" and dtype == "float32" and half is not None:
            peak = max(peak, half.value / 2)
        return peak * hardware.convolution_share.value


def check_storage(storage: WeightStorage | None, spec: ModelSpec) -> None:
    """Check that a transformer's files can be stored as asked.

    Raises:
        RequestError: They are to stay GGUF, and are not.
    """
    if storage == "gguf" and not spec.gguf_value_bytes:
        raise RequestError(
            f"storage_dtype=gguf: not every transformer of {spec.model} is in a GGUF file of fewer "
            "bits: name one as transformer, or use int8, float8 or nf4"
        )

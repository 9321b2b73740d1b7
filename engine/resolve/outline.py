"""An engine without ranks: its model, its layouts, and whether it can render a request.

Imports no torch where there is no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from longtake.configs.engine import EngineConfig
from longtake.configs.fields.few_step import FewStep
from longtake.configs.parallel import ParallelConfig
from longtake.configs.request import (
    DecodeRequest,
    Rendering,
    ResolvedDecode,
    ResolvedRequest,
    VideoRequest,
)
from longtake.engine.loras.matching import LoraMatcher
from longtake.engine.media.identity import Identity
from longtake.engine.media.pictures.picture import check_picture
from longtake.engine.planning.layout_chooser import LayoutChooser
from longtake.engine.planning.topology import topology
from longtake.engine.planning.weights.places import Placement
from longtake.engine.resolve.config import resolve_config
from longtake.engine.resolve.few_step import few_step_of_files
from longtake.engine.resolve.request import check_taken, resolve, resolve_decode
from longtake.engine.torchrun import TorchrunEnvironment
from longtake.errors import LayoutError, RequestError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.version import __version__


class EngineOutline:
    """A model and the layouts that it may run in. The constructor checks both and loads nothing.

    Args:
        config: The model, its ranks and their deadlines.
        torchrun: Torchrun's environment, whose number of ranks then counts; or None.

    Attributes:
        config: The configuration, resolved but for the degrees, the attention kernel and, until
            :meth:`place_weights`, the places of weights.
        spec: Facts about the model that are known before it is loaded.
        layouts: The layouts that requests may run in, with their predicted durations.
        loras: Finds the LoRAs of requests.

    Raises:
        ModelError: The model is missing, damaged or of an unknown kind.
        LayoutError: The degrees do not fit the devices, or there are too few devices.
        KernelError: The attention kernel is unknown.
        RequestError: The folder of LoRAs does not exist.
    """

    def __init__(self, config: EngineConfig, torchrun: TorchrunEnvironment | None = None) -> None:
        if torchrun is not None:
            config = config.model_copy(update={"devices": torchrun.world_size})
        self._checkpoint = Checkpoint.open(config.model, config.revision, parts=config.parts)
        # Configurations first: all that they refuse is refused before weights are downloaded.
        self.spec = registry.inspect(self._checkpoint, weights=False)
        self._device_type = device_type_of(config, torchrun)  # imports torch if there is a driver
        self.config = resolve_config(config, self._checkpoint, self.spec, self._device_type)
        registry.inspect(self._checkpoint, autoencoder_only=config.autoencoder_only)
        self.layouts = LayoutChooser(self.config, self.spec, self._device_type)
        self.loras = LoraMatcher(self._checkpoint, self.config.lora_folder)

    def place_weights(self, requests: Sequence[ResolvedRequest] = (), *, engines: int = 1) -> None:
        """Choose places for weights whose place is "auto": those in which the largest of these
        requests is rendered fastest. Places that are chosen stay.

        Args:
            requests: Requests that are known; a request of the model's defaults if there are none.
            engines: Engines that share this host.
        """
        config = self.config
        if "auto" not in (config.weights, config.text_weights):
            return
        self.layouts = LayoutChooser(config, self.spec, self._device_type, engines)
        if config.autoencoder_only:
            placement = Placement()
        elif requests:
            placement = self.layouts.choose(max(requests, key=self._num_values)).placement
        else:
            placement = self._default_placement()
        places = {"weights": placement.weights, "text_weights": placement.text}
        self.config = config.model_copy(update=places)
        self.layouts = LayoutChooser(self.config, self.spec, self._device_type, engines)

    def plan_of(self, request: ResolvedRequest) -> str:
        """The plan of a request in one line: what it runs in, its cost, and what would be faster;
        empty if nothing was to choose."""
        chosen = self.layouts.choose(request)
        if chosen.dims.world_size == 1 and chosen.placement == Placement():
            return ""
        return f"plan: {chosen.name}, {chosen.why}"

    def _default_placement(self) -> Placement:
        """The placement of a request of the model's defaults, on any degrees if the configured ones
        suit other requests only: passes side by side need guidance."""
        request = resolve(VideoRequest(prompt="any", seed=0), self.spec)
        try:
            return self.layouts.choose(request).placement
        except LayoutError:
            config = self.config.model_copy(update={"parallel": ParallelConfig()})
            return LayoutChooser(config, self.spec, self._device_type).choose(request).placement

    def _num_values(self, request: ResolvedRequest) -> int:
        """Values of the latents of a request."""
        return math.prod(self.spec.grid(request).shape)

    def resolve(self, request: Rendering) -> ResolvedRequest:
        """Fill in the model's defaults, and check the request against the model and the layouts.

        Raises:
            RequestError, LayoutError: It cannot be rendered here.
        """
        if self.config.autoencoder_only:
            raise RequestError("autoencoder_only=True can decode, not generate: leave it out")
        if request.lora and self.config.storage_dtype == "gguf":
            raise RequestError(
                f"lora={' '.join(request.lora)} with storage_dtype=gguf: a weight that stays as in "
                "its file takes no LoRA: leave storage_dtype out, or use int8, float8 or nf4"
            )
        check_taken(request, self.spec)
        named = self._pictures_of(request)
        pictures = {name: check_picture(*each, name) for name, each in named.items()}
        few_step = self.few_step_of_files(request)
        request = request.model_copy(update=self.loras.fields(request))
        resolved = resolve(request, self.spec, pictures, few_step)
        self.layouts.choose(resolved)
        return resolved

    def few_step_of_files(self, request: Rendering) -> FewStep | None:
        """The few-step settings that the files of weights and LoRAs name, as
        :func:`~longtake.engine.resolve.few_step.few_step_of_files`."""
        return few_step_of_files(request, self._checkpoint, self.loras)

    def _pictures_of(self, request: Rendering) -> dict[str, tuple[Path, Path | None, str | None]]:
        """Arguments of :func:`read_picture` for the pictures of a request, by field.

        Raises:
            RequestError: One is missing that the model needs.
        """
        files = {}
        for name, needed in self.spec.pictures.items():
            path = getattr(request, name)
            if path is not None:
                digest = getattr(request, f"{name}_sha256")
                files[name] = path, self.config.image_folder, digest
            elif needed == "required":
                both = " and ".join(self.spec.required_pictures)
                needs = f"needs {both}" if " and " in both else "animates a picture"
                raise RequestError(
                    f"{self.config.model} {needs}: pass {name}, a PNG, JPEG or WebP file"
                )
        return files

    def resolve_decode(
        self, request: DecodeRequest, latents_shape: Sequence[int]
    ) -> ResolvedDecode:
        """How latents become a video: the model's defaults filled in, and checked against it.

        Args:
            request: The decoding options.
            latents_shape: B, C, F, H, W.

        Raises:
            RequestError: The latents cannot be decoded by this model.
        """
        return resolve_decode(request, latents_shape, self.spec)

    def num_frames_of(self, request: ResolvedDecode) -> int:
        """Frames of each resulting video; some models drop the first ones."""
        return request.num_frames - self.spec.dropped_frames

    def identity_of(self, request: ResolvedRequest) -> Identity:
        """Everything that a request's latents depend on in this installation."""
        return Identity.of(request, self.config, self._fingerprint, self._family_version)

    def out_of_memory_reason(self, request: ResolvedRequest) -> str | None:
        """Why a request will not fit in memory according to the plan; None if it fits."""
        return self.layouts.out_of_memory_reason(request)

    def identity_part(self) -> str:
        """Everything but the request that a video depends on: model, dtypes, type of fewer bits
        that weights are stored in, if they are, versions of longtake and of another package that
        the model's family is from, separated by spaces."""
        config = self.config
        dtypes: list[str] = [config.dtype, config.vae_dtype]
        if config.storage_dtype is not None:
            dtypes.append(config.storage_dtype)
        versions = (__version__, *self._family_version.values())
        return " ".join((self._fingerprint, *dtypes, *versions))

    @cached_property
    def _family_version(self) -> dict[str, str]:
        return registry.package_version(self._checkpoint)

    @cached_property
    def _fingerprint(self) -> str:
        return self._checkpoint.fingerprint()


def device_type_of(
    config: EngineConfig, torchrun: TorchrunEnvironment | None = None
) -> Literal["cpu", "cuda"]:
    """The type of device that ranks run on.

    Args:
        config: The engine's configuration.
        torchrun: Torchrun's environment, or None.

    Raises:
        LayoutError: This host has too few GPUs.
    """
    if config.device == "cpu":
        return "cpu"
    num_gpus = _num_gpus()
    if config.device == "auto" and num_gpus == 0:
        return "cpu"
    if torchrun and config.device_ids is not None:
        raise LayoutError("device_ids under torchrun, which numbers its ranks' GPUs: leave it out")
    local = torchrun.local_world_size if torchrun else 1 + max(config.devices_by_rank)
    if local > num_gpus:
        if config.device_ids is not None:
            raise LayoutError(
                f"device_ids={' '.join(map(str, config.device_ids))} with {num_gpus} GPUs here: "
                f"they are numbered from 0 to {num_gpus - 1}"
            )
        raise LayoutError(
            f"devices={config.devices} with {num_gpus} GPUs here: try devices={max(1, num_gpus)}, "
            "or device=cpu"
        )
    return "cuda"


def _num_gpus() -> int:
    """Number of GPUs that torch can use."""
    if topology().without_driver:
        return 0
    import torch

    return torch.cuda.device_count()

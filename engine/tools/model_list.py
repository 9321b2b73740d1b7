"""The bundled models and the presets: what they are, what is here, and what a machine can run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from longtake.configs.base import ELEMENT_BYTES, Dtype
from longtake.configs.engine import EngineConfig
from longtake.configs.hardware import Hardware
from longtake.configs.models import bundled, presets
from longtake.configs.parallel import ParallelConfig
from longtake.engine.planning.advice.what_fits import RESOLUTIONS, Fit, what_fits
from longtake.engine.planning.plan_input import PlanInput
from longtake.engine.planning.planner import best_fitting
from longtake.engine.planning.weights.places import Places
from longtake.engine.resolve.request import resolve_sizes
from longtake.errors import ModelError
from longtake.pipelines import registry
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.files import hub
from longtake.pipelines.spec import ModelSpec

State = Literal["bundled", "downloaded", "in part", "no"]
"""Whether a model's files are on this machine."""

_BUNDLED_LICENSE = "apache-2.0"  # longtake's own, see LICENSE


@dataclass(frozen=True)
class ListedModel:
    """A bundled model or a preset.

    Attributes:
        name: Name of the model, for ``--model``.
        spec: Its specification.
        license: License of its weights, as the Hub names it.
        repository: Hub id of its weights; None for a bundled model.
        state: Whether its files are here.
        num_bytes: Bytes of the weights that are read: of their files if they are here, else of the
            parameters in the dtypes of the published files.
        fit: The largest size of which a video of the default length fits on this machine; of the
            smallest size if only a shorter video fits, or none.
    """

    name: str
    spec: ModelSpec
    license: str
    repository: str | None
    state: State
    num_bytes: int
    fit: Fit


def list_models(config: EngineConfig, hardware: Hardware) -> Iterator[ListedModel]:
    """Describe the bundled models and the presets, from files on this machine alone.

    Args:
        config: The devices and dtypes for which videos are planned.
        hardware: Their hardware.
    """
    for name in (*bundled(), *presets()):
        checkpoint = Checkpoint.open(name, configs_only=True)
        spec = registry.inspect(checkpoint, weights=False)
        fit = _largest_fit(config.model_copy(update={"model": name}), spec, hardware)
        if name in bundled():
            size = _weights_bytes(checkpoint.folder)
            yield ListedModel(name, spec, _BUNDLED_LICENSE, None, "bundled", size, fit)
            continue
        repository = spec.defaults.repository
        state, size = downloaded_state(repository or name)
        size = size if state == "downloaded" else published_bytes(spec)
        yield ListedModel(name, spec, spec.defaults.license, repository, state, size, fit)


def published_bytes(spec: ModelSpec) -> int:
    """Bytes of a model's published weights: its parameters in the dtypes that its defaults name."""
    dtypes: Mapping[str, Dtype] = {
        str(kind): each for kind, each in spec.defaults.file_dtypes.items()
    }
    parameters = {
        "transformer": spec.costs.transformer_parameters,
        **spec.costs.other_parameters,
    }
    return sum(
        ELEMENT_BYTES[dtypes.get(kind, "bfloat16")] * count for kind, count in parameters.items()
    )


def downloaded_state(repository: str) -> tuple[State, int]:
    """Whether a repository of the hub was downloaded, and the bytes of its weights that are here.

    It was if it renders without a connection: headers and names of all tensors are checked.
    """
    folder = hub.downloaded_folder(repository)
    size = 0 if folder is None else _weights_bytes(folder)
    if folder is None or not size:
        return "no", 0
    try:
        registry.inspect(Checkpoint.open(str(folder)))
    except ModelError:
        return "in part", size
    return "downloaded", size


def _weights_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*/*.safetensors") if file.exists())


def _largest_fit(config: EngineConfig, spec: ModelSpec, hardware: Hardware) -> Fit:
    """What fits of the largest size of which a video of the default length does."""
    best = partial(
        best_fitting,
        requested=ParallelConfig(),
        devices=config.devices,
        places=Places.of(config),
    )
    for request in resolve_sizes({}, spec, RESOLUTIONS):
        fit = what_fits(PlanInput.for_engine(config, spec, hardware, request), best)
        if fit.longest >= fit.default:
            break
    return fit

"""The models that a file may be for."""

from __future__ import annotations

from collections.abc import Iterator

from longtake.configs.models import bundled, presets
from longtake.pipelines.loading.checkpoint import Checkpoint


def known_models(model: str | None) -> Iterator[Checkpoint]:
    """The configuration of a model; of all bundled models and presets if it is None.

    Raises:
        ModelError: The model does not exist.
    """
    for name in (*presets(), *bundled()) if model is None else (model,):
        yield Checkpoint.open(name, configs_only=True)

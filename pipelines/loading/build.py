"""Builds modules of diffusers from their configurations, without weights."""

from __future__ import annotations

from typing import Any

import torch

from longtake.errors import ModelError, one_line
from longtake.pipelines.loading.quiet import quiet_libraries


def build_module(model: Any, config: dict[str, Any], component: str) -> Any:
    """Build a module on the ``meta`` device, in evaluation mode and without gradients.

    Args:
        model: The module's class in diffusers.
        config: Content of the component's config.json.
        component: Name of the component, for the error.

    Raises:
        ModelError: The configuration does not describe such a module.
    """
    try:
        with torch.device("meta"), quiet_libraries():
            return model.from_config(config).eval().requires_grad_(False)
    except Exception as error:  # a wrong value may raise anything
        raise ModelError(
            f"{component}/config.json describes no {model.__name__}: {one_line(error)}"
        ) from error

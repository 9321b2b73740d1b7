"""Builds modules without weights, and loads those of a family's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from longtake.errors import ModelError, one_line
from longtake.parallel import World
from longtake.pipelines.family import Denoiser
from longtake.pipelines.loading.checkpoint import Checkpoint
from longtake.pipelines.loading.plan import ComponentPlan
from longtake.pipelines.loading.quiet import quiet_libraries
from longtake.pipelines.loading.transformer import Weights, load_transformer
from longtake.pipelines.loading.weights import load_weights

ModuleT = TypeVar("ModuleT", bound=nn.Module)


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


def load_component(
    build: Callable[[], ModuleT],
    checkpoint: Checkpoint,
    component: str,
    world: World,
    plan: ComponentPlan,
) -> ModuleT:
    """Build a module and load its weights as planned. Collective: all ranks call it.

    It is for modules whose parameters have the names of the tensors in their files, and which keep
    no buffers out of them; :func:`~.weights.load_weights` is for all others.

    Args:
        build: Builds the module; called on the ``meta`` device.
        checkpoint: The model's files.
        component: Name of the component.
        world: All ranks.
        plan: Dtype and place of the weights.

    Raises:
        ModelError: A tensor is missing, unexpected, of the wrong shape, or cannot be read.
    """
    with torch.device("meta"):
        module = build().eval().requires_grad_(False)
    source = checkpoint.source(component)
    if isinstance(module, Denoiser):
        load_transformer(module, module, Weights(source, component=component), world, plan)
    else:
        load_weights(module, source, world, plan.dtype)
    return module

"""Where the components of a model live, and in which dtype: decided before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

import torch

from longtake.configs.fields.weights import TextPlace, WeightPlace, WeightStorage
from longtake.pipelines.lora.match import Deltas


@dataclass(frozen=True)
class ComponentPlan:
    """How one component is loaded.

    Attributes:
        dtype: Dtype of its weights, except for those that the family keeps in float32.
        place: Where its weights live.
        storage: Type of fewer bits that the linear layers of its blocks are stored in; None is
            ``dtype``.
        loras: What LoRAs add to the weights, by component and name; see
            :func:`longtake.pipelines.lora.match.combine`.
    """

    dtype: torch.dtype
    place: WeightPlace = "resident"
    storage: WeightStorage | None = None
    loras: Mapping[str, Deltas] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadPlan:
    """How a model is loaded; the same on all ranks.

    Attributes:
        transformer: The transformer or, with several experts, each of them.
        text_encoders: All encoders of prompts and pictures. Resident: rank 0 alone holds them.
        autoencoder: The autoencoder. Resident: every rank decodes tiles of its own.
        kernel: Name of the local attention kernel.

    Raises:
        ValueError: Another component than the transformer is split, stored in fewer bits or has
            LoRAs, or the autoencoder is not resident.
    """

    transformer: ComponentPlan
    text_encoders: ComponentPlan
    autoencoder: ComponentPlan
    kernel: str = "auto"

    def __post_init__(self) -> None:
        for name, places in _PLACES.items():
            plan: ComponentPlan = getattr(self, name)
            if plan.place not in places:
                raise ValueError(f"{name} cannot be {plan.place}: use {' or '.join(places)}")
            if plan.storage is not None:
                raise ValueError(f"{name} cannot be stored as {plan.storage}: use None")
            if plan.loras:
                raise ValueError(f"{name} cannot have LoRAs: use an empty mapping")

    @classmethod
    def resident(cls, dtype: torch.dtype) -> LoadPlan:
        """Plan all components whole and in one dtype."""
        whole = ComponentPlan(dtype)
        return cls(whole, whole, whole)


_PLACES: Mapping[str, tuple[WeightPlace, ...]] = {
    "text_encoders": get_args(TextPlace),
    "autoencoder": ("resident",),
}
"""Places of the components that are not split."""
